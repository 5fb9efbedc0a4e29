# repositories.sh recall KEY PATH USER | remember KEY DIGEST COMMIT PATH | forget KEY: the records of repositories.
case $1 in
recall)
  pe_commit=-
  [ ! -r "$pe_var/repositories/$2" ] || IFS='	' read -r pe_digest pe_commit pe_path <"$pe_var/repositories/$2"
  printf '%s\n' "$pe_commit"
  # For another user the directory is made here, where it may be.
  if [ -n "$4" ] && [ ! -e "$3/.git" ]; then
    mkdir -p -- "$3" && chown -- "$4" "$3" || pe_fail 70 "cannot make $3 for $4"
  fi
  ;;
remember)
  mkdir -p "$pe_var/repositories" && printf '%s\t%s\t%s\n' "$3" "$4" "$5" >"$pe_var/.repository" &&
    mv -f "$pe_var/.repository" "$pe_var/repositories/$2" || pe_fail 70 "cannot write into $pe_var/repositories"
  ;;
forget) rm -f "$pe_var/repositories/$2" ;;
esac
