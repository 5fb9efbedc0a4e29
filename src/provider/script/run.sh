# run.sh: starts the command. Without a terminal its input comes in pieces, each after a line with its length, 0 at the end: older clusters cannot say that
# input has ended. A line with the mark and the exit code ends each output: a cluster's own end waits for whatever the command left running.
[ -z "$pe_refused" ] || { pe_say "no $pe_refused"; exit 125; }
pe_say ok
[ "$pe_mode" != tty ] || pe_become "$@"

pe_feed() {
  # Who this is.
  sh -c 'echo "$PPID"'
  while read -r pe_length && [ "$pe_length" -gt 0 ]; do
    dd bs="$pe_length" count=1 iflag=fullblock || return
  done
}

exec 3<&0 4>&2 2>/dev/null
pe_feed <&3 3<&- 4>&- | {
  read -r pe_feeder
  (pe_become "$@") 2>&4 3<&- 4>&-
  pe_status=$?
  printf '%s%03d\n' "$pe_mark" "$pe_status"
  printf '%s%03d\n' "$pe_mark" "$pe_status" >&4
  # The one signal of which no shell tells.
  kill -s PIPE "$pe_feeder"
}
