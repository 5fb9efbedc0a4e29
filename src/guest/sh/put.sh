# put.sh TOKEN MEMBER MODE [LINK-TARGET]: one member of a bundle, a file from standard input or a link, for a sandbox without tar.
pe_find_run
cd -- "$pe_run/in-$1" || exit 1
case $2 in */*) mkdir -p -- "${2%/*}" || exit 1 ;; esac
if [ $# -gt 3 ]; then
  exec ln -s -- "$4" "$2"
fi
umask 077
cat >"$2" && chmod "$3" -- "$2"
