# VERB ARG…: one operation on files, by somebody who may do everything. Statuses: 44 not there, 45 not a directory, 46 a directory, 47 there
# already, 49 not done, with the reason on standard error.
make_dirs() { # DIR OWNER: with its parents; each that is new belongs to OWNER
  [ -d "${1:-/}" ] && return
  make_dirs "${1%/*}" "$2" || return
  if mkdir "$1" 2>/dev/null; then chown "$2" "$1" 2>/dev/null; return 0; fi
  [ -d "$1" ] || { printf '%s is not a directory\n' "$1" >&2; return 1; }
}
entries() { # TOKEN PATH…: what each is; the token begins every record, since a name may hold anything
  mark=$1
  shift
  stat -c "${mark}S%f %s %Y %U %G %i %y %z %n" -- "$@" 2>/dev/null
  for entry; do
    [ -L "$entry" ] || continue
    printf '%sL%s\n%sT%s\n' "$mark" "$entry" "$mark" "$(readlink -f -- "$entry" || readlink -- "$entry")"
    stat -L -c "${mark}M%f" -- "$entry" 2>/dev/null
  done
  return 0
}
exists() { [ -e "$1" ] || [ -L "$1" ]; }
verb=$1
shift
case $verb in
  stat) # TOKEN PATH
    exists "$2" || exit 44
    entries "$@"
    ;;
  list) # TOKEN PATH DEPTH
    exists "$2" || exit 44
    [ -d "$2" ] || exit 45
    find -H "$2" -mindepth 1 -maxdepth "$3" -exec sh -c 'eval "$PE_FILES"' pocketenv-files entries "$1" {} +
    ;;
  entries) entries "$@" ;;
  mkdir) # PATH OWNER
    [ ! -d "$1" ] || exit 47
    ! exists "$1" || exit 45
    make_dirs "$1" "$2" || exit 49
    ;;
  move) # FROM TO OWNER
    exists "$1" || exit 44
    make_dirs "${2%/*}" "$3" || exit 49
    if [ -d "$2" ] && [ ! -L "$2" ]; then
      # As a rename does: only an empty directory gives way, and only to a directory.
      [ -d "$1" ] && [ ! -L "$1" ] || { printf '%s is a directory\n' "$2" >&2; exit 49; }
      rmdir "$2" || exit 49
    fi
    mv -f -- "$1" "$2" || exit 49
    ;;
  remove) # PATH
    rm -rf -- "$1" || exit 49
    ;;
  read) # PATH: a line with the size, and what it holds
    exists "$1" || exit 44
    [ ! -d "$1" ] || exit 46
    [ -r "$1" ] || { printf '%s cannot be read\n' "$1" >&2; exit 49; }
    if [ -f "$1" ]; then stat -L -c %s -- "$1" || exit 49; else printf -- '-\n'; fi
    cat -- "$1" || exit 49
    ;;
  write) # PATH OWNER [gzip]: what standard input holds
    [ ! -d "$1" ] || exit 46
    make_dirs "${1%/*}" "$2" || exit 49
    if [ "$3" = gzip ]; then gzip -dc >"$1" || exit 49; else cat >"$1" || exit 49; fi
    chown "$2" "$1" 2>/dev/null
    exit 0
    ;;
  watch) # TOKEN PATH DEPTH: says again and again what there is, after every change of it
    exists "$2" || exit 44
    [ -d "$2" ] || exit 45
    before=
    while :; do
      now=$(find -H "$2" -mindepth 1 -maxdepth "$3" -exec sh -c 'eval "$PE_FILES"' pocketenv-files entries "$1" {} + 2>/dev/null)
      if [ "$now" != "$before" ] || [ -z "$told" ]; then
        told=1
        printf '%s\n%sE\n' "$now" "$1"
        before=$now
      fi
      [ -d "$2" ] || exit 44
      sleep 0.2 2>/dev/null || sleep 1
    done
    ;;
esac
