# hashes.sh DIR: hashes of the files whose names, relative to DIR, stand on standard input one a line; in that order.
cd -- "$1" || exit 1
set --
while IFS= read -r pe_name; do
  set -- "$@" "./$pe_name"
  [ $# -lt 200 ] || { sha256sum -- "$@" || exit 1; set --; }
done
[ $# -eq 0 ] || sha256sum -- "$@"
