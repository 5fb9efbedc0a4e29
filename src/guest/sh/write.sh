# write.sh TOKEN unpack|prepare|commit: puts a bundle in place. With `unpack` the bundle comes as a tar stream on standard
# input; where there is no tar, `prepare` is followed by one `cat` a member and `commit`. The last member, `control`, says what to do, so a cut stream does nothing.
umask 022
pe_tab='	'
pe_token=$1 pe_how=$2
pe_make_run
# The directory the archive is unpacked in: links lead to where its members belong. Made once, because each program that is started costs time.
pe_stage=$pe_run/stage
if [ ! -h "$pe_stage/var" ] || [ ! -d "$pe_var/files" ] || [ ! -d "$pe_run/secrets" ]; then
  rm -rf "$pe_stage"
  mkdir -p "$pe_var/files" && mkdir -p "$pe_run/secrets" && chmod 711 "$pe_run/secrets" && mkdir -m 700 "$pe_stage" &&
    ln -s / "$pe_stage/root" && ln -s "$pe_run" "$pe_stage/mem" && ln -s "$pe_var/files" "$pe_stage/var" ||
    pe_fail 70 "cannot prepare $pe_var and $pe_run"
fi

if [ "$pe_how" != commit ]; then
  # What an interrupted run left.
  for pe_left in "$pe_stage/control" "$pe_run"/new.*; do
    [ ! -e "$pe_left" ] || rm -f "$pe_left"
  done
  [ "$pe_how" = unpack ] || exit 0
  command -v tar >/dev/null 2>&1 || exit 72
  tar -xpf - -C "$pe_stage" || pe_fail 70 "tar failed"
fi
[ -f "$pe_stage/control" ] || pe_fail 70 "the bundle ended early"

pe_do() { # WHAT COMMAND…
  pe_what=$1
  shift
  "$@" || pe_fail 70 "$pe_what failed"
}

# Removes from directory ROOT what list OLD names and list KEEP does not. A directory's name ends with a slash.
pe_remove() { # OLD KEEP ROOT
  cd -- "$3" 2>/dev/null || return 0
  # What is in KEEP comes at least twice.
  LC_ALL=C sort "$1" "$2" "$2" | uniq -u | LC_ALL=C sort -r | while IFS= read -r pe_name; do
    case $pe_name in
    */) rmdir -- "$pe_name" 2>/dev/null ;;
    *) if [ ! -d "$pe_name" ] || [ -h "$pe_name" ]; then rm -f -- "$pe_name" || exit 1; fi ;;
    esac
  done || pe_fail 70 "cannot remove everything that was put into $3"
  cd /
}

pe_forget() { # KEY
  pe_record=$pe_var/files/$1
  [ -r "$pe_record.rec" ] || return 0
  IFS=$pe_tab read -r pe_kind pe_digest pe_sha pe_mode pe_path <"$pe_record.rec"
  case $pe_kind in
  T)
    pe_remove "$pe_record.names" /dev/null "$pe_path"
    rmdir -- "$pe_path" 2>/dev/null
    ;;
  *)
    # A directory there now is not ours.
    if [ ! -d "$pe_path" ] || [ -h "$pe_path" ]; then pe_do "removing $pe_path" rm -f -- "$pe_path"; fi
    rm -f "$pe_run/secrets/$1" "$pe_run/secrets/$1.sum"
    ;;
  esac
  rm -f "$pe_record.names" "$pe_record.sums" "$pe_record.odd" "$pe_record.modes" "$pe_record.links" "$pe_record.rec"
}

# Before anything of key $1 is touched: a record that claims nothing and still lists whatever may be there.
pe_pending() { # KEY
  pe_record=$pe_var/files/$1 pe_next=$pe_var/files/.new.$1
  if [ -r "$pe_record.rec" ]; then
    IFS=$pe_tab read -r pe_kind pe_digest pe_sha pe_mode pe_path <"$pe_record.rec"
    # A directory that becomes a file or the other way round: nothing of the old is kept.
    IFS=$pe_tab read -r pe_next_kind pe_rest <"$pe_next.rec"
    case $pe_kind$pe_next_kind in T[FS] | [FS]T) pe_forget "$1" ;; esac
  fi
  if [ -r "$pe_next.names" ]; then
    [ ! -r "$pe_record.names" ] || pe_remove "$pe_record.names" "$pe_next.names" "$pe_path"
    cp "$pe_next.names" "$pe_record.names.next" && mv -f "$pe_record.names.next" "$pe_record.names" ||
      pe_fail 70 "cannot write $pe_record.names"
  fi
  IFS=$pe_tab read -r pe_kind pe_digest pe_sha pe_mode pe_path <"$pe_next.rec"
  printf '%s\t-\t-\t-\t%s\n' "$pe_kind" "$pe_path" >"$pe_record.rec.pending" && mv -f "$pe_record.rec.pending" "$pe_record.rec" ||
    pe_fail 70 "cannot write $pe_record.rec"
}

pe_record() { # KEY
  for pe_part in names sums odd modes links rec; do
    [ ! -e "$pe_var/files/.new.$1.$pe_part" ] ||
      pe_do "writing a record" mv -f "$pe_var/files/.new.$1.$pe_part" "$pe_var/files/$1.$pe_part"
  done
}

pe_secret() { # KEY MODE PATH
  pe_parent=${3%/*}
  mkdir -p -- "${pe_parent:=/}" || pe_fail 70 "cannot make $pe_parent"
  pe_value=$pe_run/new.$1
  pe_own -- "$pe_owner" "$pe_value"
  pe_do "chmod $2" chmod "$2" "$pe_value"
  if [ -d "$3" ] && [ ! -h "$3" ]; then pe_fail 70 "$3 is a directory"; fi
  if pe_is_memory "$pe_parent"; then
    rm -f "$pe_run/secrets/$1"
    # Between two filesystems a move is a copy; the second one is at once.
    pe_do "writing $3" mv -f -- "$pe_value" "$pe_parent/.pocketenv-$pe_token-secret"
    pe_do "writing $3" mv -f -- "$pe_parent/.pocketenv-$pe_token-secret" "$3"
  else
    pe_do "writing $3" mv -f -- "$pe_value" "$pe_run/secrets/$1"
    pe_do "linking $3" ln -s "$pe_run/secrets/$1" "$pe_parent/.pocketenv-$pe_token-secret"
    pe_do "linking $3" mv -f -- "$pe_parent/.pocketenv-$pe_token-secret" "$3"
  fi
  pe_do "writing a record" mv -f "$pe_run/new.$1.sum" "$pe_run/secrets/$1.sum"
}

# Paths gather in the argument list; a verb uses them up.
set --
while IFS=$pe_tab read -r pe_op pe_a pe_b pe_c; do
  case $pe_op in
  arg) set -- "$@" "$pe_a" ;;
  mkdir) pe_do "mkdir" mkdir -p -- "$@"; set -- ;;
  chmod) pe_do "chmod" chmod "$pe_a" -- "$@"; set -- ;;
  owner) pe_know_owner "$pe_a" ;;
  own) pe_own -h -- "$pe_owner" "$@"; set -- ;;
  own_staged) [ ! -d "$pe_a" ] || pe_own -hR -- "$pe_owner" "$pe_a" ;;
  move)
    # Names in the staging directory A, to directory B. Short lines: a shell reads them byte by byte.
    cd -- "$pe_a" || pe_fail 70 "cannot enter $pe_a"
    for pe_name do
      if [ -d "$pe_b/$pe_name" ] && [ ! -h "$pe_b/$pe_name" ]; then pe_fail 70 "$pe_b/$pe_name is a directory"; fi
    done
    pe_do "writing into $pe_b" mv -f -- "$@" "$pe_b/"
    cd /
    set --
    ;;
  sweep) rm -rf -- "${pe_a%/}"/.pocketenv-* ;;
  pending) pe_pending "$pe_a" ;;
  record) pe_record "$pe_a" ;;
  forget) pe_forget "$pe_a" ;;
  secret) pe_secret "$pe_a" "$pe_b" "$pe_c" ;;
  env)
    # Both parts change by one rename each, the record last: in between the environment counts as changed.
    mv -f "$pe_run/new.env" "$pe_run/env" &&
      printf '%s %s\n' "$pe_a" "$pe_b" >"$pe_run/env.record.new" && mv -f "$pe_run/env.record.new" "$pe_run/env.record" ||
      pe_fail 70 "cannot write the environment"
    ;;
  *) pe_fail 70 "unknown verb $pe_op" ;;
  esac
done <"$pe_stage/control"
rm -f "$pe_stage/control"
