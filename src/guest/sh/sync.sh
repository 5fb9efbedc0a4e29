# sync.sh TO KEY TOKEN OWNER: changes directory TO as the tar stream on standard input says. The stream is unpacked beside what it replaces; its member
# `control`, the last one, says what to do, so a cut stream does nothing.
umask 022
pe_tab='	'
pe_to=$1 pe_key=$2 pe_stage=$1/.pocketenv-sync-$3
pe_record=$pe_var/files/$pe_key
command -v tar >/dev/null 2>&1 || pe_fail 72 "tar is not installed in the sandbox"
mkdir -p -- "$pe_to" "$pe_var/files" && mkdir -m 700 -- "$pe_stage" || pe_fail 70 "cannot write into $pe_to"
trap 'cd /; rm -rf -- "$pe_stage" "$pe_record.next"' EXIT
trap 'exit 143' TERM INT HUP
tar -xopf - -C "$pe_stage" || pe_fail 70 "tar failed"
[ -f "$pe_stage/control" ] || pe_fail 70 "the changes ended early"
pe_know_owner "$4"
[ ! -d "$pe_stage/files" ] || pe_own -hR -- "$pe_owner" "$pe_stage/files"
cd -- "$pe_to" || pe_fail 70 "cannot enter $pe_to"

pe_do() { # WHAT COMMAND…
  pe_what=$1
  shift
  "$@" || pe_fail 70 "$pe_what failed"
}

# Paths gather in the argument list; a verb uses them up.
set --
while IFS=$pe_tab read -r pe_op pe_a; do
  case $pe_op in
  arg) set -- "$@" "$pe_a" ;;
  pending)
    # From now on the record claims nothing and lists whatever may be there.
    [ ! -f "$pe_stage/names" ] || cat "$pe_stage/names" >>"$pe_record.names" || pe_fail 70 "cannot write $pe_record.names"
    printf 'T\t-\t-\t-\t%s\n' "$pe_to" >"$pe_record.rec.pending" && mv -f "$pe_record.rec.pending" "$pe_record.rec" ||
      pe_fail 70 "cannot write $pe_record.rec"
    ;;
  unlink)
    for pe_name do
      # A directory there now is not ours.
      if [ ! -d "$pe_name" ] || [ -h "$pe_name" ]; then pe_do "removing $pe_name" rm -f -- "$pe_name"; fi
    done
    set --
    ;;
  # One that holds what others put there stays.
  rmdir) rmdir -- "$@" 2>/dev/null; set -- ;;
  mkdir) pe_do "mkdir" mkdir -p -- "$@"; pe_own -h -- "$pe_owner" "$@"; set -- ;;
  chmod) pe_do "chmod" chmod "$pe_a" -- "$@"; set -- ;;
  move)
    cd -- "$pe_stage/files/$pe_a" || pe_fail 70 "cannot enter $pe_a"
    for pe_name do
      if [ -d "$pe_to/$pe_a/$pe_name" ] && [ ! -h "$pe_to/$pe_a/$pe_name" ]; then
        pe_fail 70 "$pe_to/$pe_a/$pe_name is a directory that holds something else"
      fi
    done
    pe_do "writing into $pe_to/$pe_a" mv -f -- "$@" "$pe_to/$pe_a/"
    cd -- "$pe_to"
    set --
    ;;
  record)
    pe_do "writing a record" rm -rf -- "$pe_record.next"
    pe_do "writing a record" mv -f -- "$pe_stage/record" "$pe_record.next"
    for pe_part in names modes sums odd links rec; do
      pe_do "writing a record" mv -f -- "$pe_record.next/$pe_part" "$pe_record.$pe_part"
    done
    ;;
  *) pe_fail 70 "unknown verb $pe_op" ;;
  esac
done <"$pe_stage/control"
