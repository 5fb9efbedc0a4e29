# put.sh MEMBER MODE [LINK-TARGET]: one member of a bundle, a file from standard input or a link, for a sandbox without tar.
pe_find_run
cd -- "$pe_run/stage" || exit 1
case $1 in */*) mkdir -p -- "${1%/*}" || exit 1 ;; esac
if [ $# -gt 2 ]; then
  exec ln -s -- "$3" "$1"
fi
umask 077
cat >"$1" && chmod "$2" -- "$1"
