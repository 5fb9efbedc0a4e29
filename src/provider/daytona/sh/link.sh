# link.sh: starts the command whose words are sent, each a line `=WORD`, a word with a backslash being one for `printf %b`. begin.sh, which Daytona runs,
# has taken this script and has pe_next, which takes the next message: a line with its length, and base64. Without a terminal Daytona carries lines of
# text and nothing else, so what the command takes and gives is base64 there.
pe_words=$(pe_next)
set --
while IFS= read -r pe_word; do
  pe_word=${pe_word#=}
  case $pe_word in
  *\\*) pe_word=$(printf '%b.' "$pe_word") && pe_word=${pe_word%.} ;;
  esac
  set -- "$@" "$pe_word"
done <<pe_end
$pe_words
pe_end
if [ -n "$pe_tty" ]; then
  stty "$pe_tty"
  exec "$@"
fi

pe_decode() {
  while pe_next; do :; done
}

pe_encode() {
  while pe_piece=$(dd bs=49152 count=1 2>/dev/null | base64) && [ -n "$pe_piece" ]; do
    printf '%s\n' "$pe_piece"
  done
}

# In a session of its own it is killed alone, and what it leaves running outlives the shell that Daytona gave it.
pe_own=
if command -v setsid >/dev/null 2>&1; then pe_own=setsid; fi
{ { pe_decode 4>&- 5>&- | $pe_own "$@" 2>&4 4>&- 5>&- | pe_encode >&5 4>&-; } 4>&1 | pe_encode >&2; } 5>&1
