# folders.sh: makes the directories that are not there; lines OWNER, tab, PATH on standard input. What is made is given to its owner, and remembered, so
# that it can be given to the next one. What was there before stays whose it is.
umask 022
pe_tab='	'
mkdir -p -- "$pe_var" || pe_fail 70 "cannot make $pe_var"
pe_ours="
$(cat "$pe_var/folders" 2>/dev/null)
" pe_done=
while IFS=$pe_tab read -r pe_who pe_path; do
  pe_know_owner "$pe_who"
  pe_at=$pe_path pe_new= pe_make=
  set --
  while [ -n "$pe_at" ]; do
    if [ ! -d "$pe_at" ]; then
      pe_make=1
      # In memory it goes away with every stop, and comes again.
      case $pe_ours in *"
$pe_at
"*) ;; *) pe_new="$pe_at
$pe_new" ;; esac
      set -- "$pe_at" "$@"
    else
      case $pe_ours in *"
$pe_at
"*) case $pe_done in *"
$pe_at
"*) ;; *) set -- "$pe_at" "$@" ;; esac ;; esac
    fi
    pe_at=${pe_at%/*}
  done
  [ $# -gt 0 ] || continue
  if [ -n "$pe_make" ]; then
    mkdir -p -- "$pe_path" || pe_fail 70 "cannot make $pe_path"
    printf %s "$pe_new" >>"$pe_var/folders" || pe_fail 70 "cannot write $pe_var/folders"
    pe_ours=$pe_ours$pe_new
  fi
  pe_own -h -- "$pe_owner" "$@"
  for pe_at do pe_done="$pe_done
$pe_at
"; done
done
