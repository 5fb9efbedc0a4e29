# Processes by pid and start time: a pid alone may have been given to somebody else.

# Sets pe_start to the start time of process $1 (clock ticks since boot), or to nothing.
pe_start_of() {
  pe_start=
  [ -r "/proc/$1/stat" ] && read -r pe_stat <"/proc/$1/stat" || return 1
  set -f
  # The name in parentheses may hold blanks; the start time is the 20th field after it. A zombie is not alive.
  set -- ${pe_stat##*) }
  set +f
  [ "$1" != Z ] && pe_start=${20}
} 2>/dev/null

# Whether the process that file $1 names (`PID START`) still lives; sets pe_pid.
pe_alive() {
  pe_pid=
  [ -r "$1" ] && read -r pe_pid pe_expected <"$1" || return 1
  [ -n "$pe_pid" ] && pe_start_of "$pe_pid" && [ "$pe_start" = "$pe_expected" ]
}

# Replaces file $1 by a line of the other arguments, separated by blanks, at once. A new file is empty for a moment, which reads as no line.
pe_put() {
  pe_file=$1
  shift
  if [ ! -e "$pe_file" ]; then printf '%s\n' "$*" >"$pe_file"; return; fi
  printf '%s\n' "$*" >"$pe_file.new" && mv -f "$pe_file.new" "$pe_file"
}
