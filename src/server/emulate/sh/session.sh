# TOKEN: reads commands from standard input and runs them one after another, in this one shell. Each comes behind a line with the token and how many
# lines it has. When it has ended both outputs say the token and its status.
pe_token=$1
shift
while IFS= read -r pe_line; do
  # What a command left unread is no command.
  case $pe_line in "$pe_token "*) ;; *) continue ;; esac
  pe_left=${pe_line#* }
  pe_text=
  while [ "$pe_left" -gt 0 ] && IFS= read -r pe_line; do
    pe_text=$pe_text$pe_line'
'
    pe_left=$((pe_left - 1))
  done
  eval "$pe_text"
  pe_status=$?
  printf '%s %s\n' "$pe_token" "$pe_status"
  printf '%s %s\n' "$pe_token" "$pe_status" >&2
done
