# repositories.sh recall KEY PATH OWNER | remember KEY DIGEST COMMIT PATH | forget KEY: the records of repositories.
case $1 in
recall)
  pe_commit=-
  [ ! -r "$pe_var/repositories/$2" ] || IFS='	' read -r pe_digest pe_commit pe_path <"$pe_var/repositories/$2"
  printf '%s\n' "$pe_commit"
  pe_know_owner "$4"
  if [ -e "$3/.git" ]; then
    # What was brought here in the time of another user; git does not work on what belongs to others.
    if [ "$pe_commit" != - ]; then
      pe_who=${pe_owner:-$(id -u):$(id -g)}
      pe_u=$(id -u -- "${pe_who%%:*}" 2>/dev/null) || pe_u=${pe_who%%:*}
      [ "$(stat -c %u "$3/.git")" = "$pe_u" ] || chown -hR -- "$pe_who" "$3" || pe_fail 70 "cannot give $3 to $pe_who"
    fi
  elif [ -n "$pe_owner" ]; then
    # For another user the directory is made here, where it may be.
    mkdir -p -- "$3" || pe_fail 70 "cannot make $3 for $4"
    pe_own -- "$pe_owner" "$3"
  fi
  ;;
remember)
  mkdir -p "$pe_var/repositories" && printf '%s\t%s\t%s\n' "$3" "$4" "$5" >"$pe_var/.repository" &&
    mv -f "$pe_var/.repository" "$pe_var/repositories/$2" || pe_fail 70 "cannot write into $pe_var/repositories"
  ;;
forget) rm -f "$pe_var/repositories/$2" ;;
esac
