# copy_out.sh kind PATH | file PARENT NAME | directory PATH: says what is at a path, or packs it onto standard output.
case $1 in
kind)
  if [ -d "$2" ]; then echo directory; elif [ -f "$2" ]; then echo file; elif [ -e "$2" ]; then echo other; else echo missing; fi
  exit 0
  ;;
esac
command -v tar >/dev/null 2>&1 || pe_fail 72 "tar is not installed in the sandbox"
# A link named by the user stands for what it leads to, as with cp; those below stay links.
case $1 in
file) exec tar -chf - -C "$2" -- "$3" ;;
directory) exec tar -cf - -C "$2" . ;;
esac
