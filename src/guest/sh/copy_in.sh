# copy_in.sh TO NAME file|directory: unpacks the tar stream on standard input and prints where it went. A destination that is a directory, or ends
# with a slash, takes it under its own name; a file takes its place at once.
pe_to=$1 pe_name=$2 pe_kind=$3
command -v tar >/dev/null 2>&1 || pe_fail 72 "tar is not installed in the sandbox"
case $pe_to in */) mkdir -p -- "$pe_to" || pe_fail 70 "cannot make $pe_to" ;; esac
[ ! -d "$pe_to" ] || pe_to=${pe_to%/}/$pe_name
pe_parent=${pe_to%/*}
mkdir -p -- "${pe_parent:=/}" || pe_fail 70 "cannot make $pe_parent"
if [ "$pe_kind" = directory ]; then
  mkdir -p -- "$pe_to" && tar -xopf - -C "$pe_to" || pe_fail 70 "cannot unpack into $pe_to"
else
  [ ! -d "$pe_to" ] || pe_fail 70 "$pe_to is a directory"
  pe_stage=$(mktemp -d "$pe_parent/.pocketenv-XXXXXX") || pe_fail 70 "cannot write into $pe_parent"
  trap 'rm -rf "$pe_stage"' EXIT
  trap 'exit 143' TERM INT HUP
  tar -xopf - -C "$pe_stage" && [ -e "$pe_stage/$pe_name" ] && mv -f -- "$pe_stage/$pe_name" "$pe_to" ||
    pe_fail 70 "cannot write $pe_to"
fi
printf '%s\n' "$pe_to"
