# logs.sh NAME TAIL|all FOLLOW: prints a service's log, the rotated parts first, and with FOLLOW=1 whatever comes, across rotations.
pe_file=$pe_log/$1/log
if [ ! -e "$pe_file" ]; then
  pe_find_run
  [ -d "$pe_run/services/$1" ] || [ -d "$pe_log/$1" ] || pe_fail 75 "there is no service $1"
  [ "$3" = 1 ] || exit 0
  until [ -e "$pe_file" ]; do sleep 0.2 2>/dev/null || sleep 1; done
fi

pe_short() { sleep 0.1 2>/dev/null || sleep 1; }

# Sets pe_number to the number of the rotated log that descriptor 4 has open, 0 for the live one; fails if it is none of them any more. A rotation
# in progress hides a file for a moment.
pe_where() {
  for pe_try in 1 2 3; do
    for pe_candidate in "$pe_file" "$pe_file".*; do
      [ "$pe_candidate" -ef /dev/fd/4 ] || continue
      pe_number=${pe_candidate#"$pe_file"}
      pe_number=${pe_number#.}
      pe_number=${pe_number:-0}
      return 0
    done
    pe_short
  done
  return 1
}

# Opens the oldest log there is.
pe_open_oldest() {
  pe_highest=0 pe_oldest=$pe_file
  for pe_candidate in "$pe_file".*; do
    pe_number=${pe_candidate##*.}
    case $pe_number in '' | *[!0-9]*) continue ;; esac
    [ "$pe_number" -le "$pe_highest" ] || pe_highest=$pe_number pe_oldest=$pe_candidate
  done
  # `command`: a failed redirection of a plain exec ends the shell.
  command exec 4<"$pe_oldest" || pe_short
}

# Opens the next newer log than the rotated one that is open, which is complete. Rotation moves old logs before new ones, so if ours has the same
# number before and after the other was opened, the other is the next one.
pe_advance() {
  while pe_where && [ "$pe_number" -gt 0 ]; do
    pe_before=$pe_number pe_next=$pe_file
    [ "$pe_number" -eq 1 ] || pe_next=$pe_file.$((pe_number - 1))
    if [ -r "$pe_next" ]; then
      if command exec 5<&4 4<"$pe_next" 6<&4 4<&5 && pe_where && [ "$pe_number" = "$pe_before" ]; then
        exec 4<&6 5<&- 6<&-
        return
      fi
    else
      pe_short
    fi
  done
  # It was rotated away while we were behind.
  [ "${pe_number:-0}" -eq 0 ] || pe_open_oldest
}

# Everything up to the end of what descriptor 7 has open.
pe_history() {
  pe_open_oldest
  until [ /dev/fd/4 -ef /dev/fd/7 ]; do
    cat <&4
    pe_advance
    # The other was rotated away meanwhile.
    pe_where && [ "$pe_number" -gt 0 ] || break
  done
  cat <&7
}

exec 7<"$pe_file" 4<"$pe_file"
case $2 in
all) pe_history ;;
*) pe_history | tail -n "$2" ;;
esac
[ "$3" = 1 ] || exit 0
exec 4<&7 7<&-
while :; do
  cat <&4
  if ! pe_where; then
    until [ -r "$pe_file" ]; do pe_short; done
    pe_open_oldest
  elif [ "$pe_number" -gt 0 ]; then
    # Nothing more is written to a rotated log.
    cat <&4
    pe_advance
  else
    pe_short
  fi
done
