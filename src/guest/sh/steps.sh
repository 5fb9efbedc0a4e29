# steps.sh remember ID OUTCOME | forget ID…: the records of preset steps.
pe_what=$1
shift
case $pe_what in
remember)
  mkdir -p "$pe_var/steps" && pe_put "$pe_var/.step" "$2" && mv -f "$pe_var/.step" "$pe_var/steps/$1" ||
    pe_fail 70 "cannot write into $pe_var/steps"
  ;;
forget) for pe_id do rm -f "$pe_var/steps/$pe_id" || exit 70; done ;;
esac
