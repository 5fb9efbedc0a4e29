# Where Pocketenv keeps its state in this sandbox: pe_var survives a stop, pe_run is memory-backed, pe_log holds logs.
# Every name of ours starts with pe_: a variable of the user that is exported must reach the user's process unchanged.
if [ -w /var/lib ]; then
  pe_var=/var/lib/pocketenv pe_log=/var/log/pocketenv
else
  pe_var=${HOME:-/nonexistent}/.pocketenv pe_log=${HOME:-/nonexistent}/.pocketenv/log
fi

pe_uid=
pe_fail() { # STATUS MESSAGE…
  pe_status=$1
  shift
  printf '%s\n' "$*" >&2
  exit "$pe_status"
}

pe_know_uid() { pe_uid=${pe_uid:-$(id -u)}; }

# Sets pe_run to the directory in memory if it is there already, else to nothing.
pe_find_run() {
  pe_run=/run/pocketenv
  [ -d "$pe_run" ] && [ -O "$pe_run" ] && return
  for pe_run in /dev/shm/pocketenv-* /tmp/pocketenv-*; do
    # Only what may be ours is worth starting a program for.
    [ -d "$pe_run" ] && [ -O "$pe_run" ] && pe_know_uid && [ "${pe_run##*-}" = "$pe_uid" ] && return
  done
  pe_run=
}

pe_is_memory() { # DIR
  case $(stat -f -c %T "$1" 2>/dev/null) in tmpfs | ramfs) ;; *) return 1 ;; esac
}

# The same, and makes it where it is not there.
pe_make_run() {
  pe_find_run
  [ -z "$pe_run" ] || return 0
  for pe_place in /run /dev/shm /tmp; do
    [ -w "$pe_place" ] && pe_is_memory "$pe_place" || continue
    pe_run=$pe_place/pocketenv
    [ "$pe_place" = /run ] || { pe_know_uid && pe_run=$pe_run-$pe_uid; }
    # Another script may make it at the same moment.
    if mkdir -m 711 "$pe_run" 2>/dev/null || { [ -d "$pe_run" ] && [ -O "$pe_run" ]; }; then return; fi
  done
  pe_fail 71 "none of /run, /dev/shm and /tmp is a writable directory in memory; secrets have no place to be"
}
