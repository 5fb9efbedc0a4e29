# Prints what is in place, one fact a line, fields separated by tabs. Nothing is changed.
pe_tab='	'
pe_find_run
printf 'pocketenv\t1\n'

# Environment: digest and hash as written; the hash as it is now comes with the files.
set --
if [ -n "$pe_run" ] && [ -r "$pe_run/env.record" ]; then
  read -r pe_digest pe_sha <"$pe_run/env.record"
  printf 'env\t%s\t%s\t%s\n' "$pe_digest" "$pe_sha" "$pe_run/env"
  [ -f "$pe_run/env" ] && set -- "$pe_run/env"
fi

# Prints hash and mode of the files in "$@". Secrets are reached through links, so the mode is printed for both sides of a link.
pe_facts() {
  [ $# -gt 0 ] || return 0
  sha256sum -- "$@" 2>/dev/null
  stat -c "mode$pe_tab%f$pe_tab%n" -- "$@" 2>/dev/null
  stat -L -c "target$pe_tab%f$pe_tab%n" -- "$@" 2>/dev/null
}

# Prints kind and mode of every entry of a tree, in the order of its list.
pe_modes() {
  while IFS= read -r pe_name; do
    set -- "$@" "$pe_name"
    [ $# -lt 200 ] || { stat -c %f -- "$@" || return 1; set --; }
  done
  [ $# -eq 0 ] || stat -c %f -- "$@"
}

pe_links() {
  while IFS= read -r pe_name && IFS= read -r pe_target; do
    [ "$(readlink -- "$pe_name"; echo .)" = "$pe_target
." ] || return 1
  done
}

# Files whose names `sha256sum -c` would misread.
pe_odd() {
  while IFS= read -r pe_name && IFS= read -r pe_sha; do
    pe_now=$(sha256sum <"$pe_name") && [ "${pe_now%% *}" = "$pe_sha" ] || return 1
  done
}

pe_tree_state() { # RECORD ROOT
  [ -d "$2" ] || { echo missing; return; }
  cd -- "$2" 2>/dev/null || { echo missing; return; }
  if [ -s "$1.sums" ] && ! sha256sum -c "$1.sums" >/dev/null 2>&1; then echo modified; return; fi
  if [ "$(pe_modes <"$1.names" 2>/dev/null)" != "$(cat "$1.modes")" ]; then echo modified; return; fi
  if ! pe_odd <"$1.odd" 2>/dev/null || ! pe_links <"$1.links"; then echo modified; return; fi
  echo ok
}

for pe_record in "$pe_var"/files/*.rec; do
  [ -r "$pe_record" ] || continue
  pe_key=${pe_record##*/}
  pe_key=${pe_key%.rec}
  IFS=$pe_tab read -r pe_kind pe_digest pe_sha pe_mode pe_path <"$pe_record" || continue
  case $pe_kind in
  T)
    pe_state=$(pe_tree_state "${pe_record%.rec}" "$pe_path")
    printf 'tree\t%s\t%s\t%s\n' "$pe_digest" "$pe_state" "$pe_path"
    continue
    ;;
  S)
    pe_sha=-
    [ -n "$pe_run" ] && [ -r "$pe_run/secrets/$pe_key.sum" ] && read -r pe_sha <"$pe_run/secrets/$pe_key.sum"
    ;;
  esac
  printf 'file\t%s\t%s\t%s\t%s\t%s\n' "$pe_kind" "$pe_digest" "$pe_sha" "$pe_mode" "$pe_path"
  [ -f "$pe_path" ] || [ -h "$pe_path" ] || [ -e "$pe_path" ] || continue
  set -- "$@" "$pe_path"
  [ $# -lt 200 ] || { pe_facts "$@"; set --; }
done
pe_facts "$@"

for pe_record in "$pe_var"/repositories/*; do
  [ -r "$pe_record" ] && IFS=$pe_tab read -r pe_digest pe_commit pe_path <"$pe_record" || continue
  pe_state=absent
  [ -e "$pe_path/.git" ] && pe_state=present
  printf 'repository\t%s\t%s\t%s\n' "$pe_digest" "$pe_state" "$pe_path"
done

for pe_record in "$pe_var"/steps/*; do
  [ -r "$pe_record" ] && read -r pe_outcome <"$pe_record" || continue
  printf 'step\t%s\t%s\n' "${pe_record##*/}" "$pe_outcome"
done

[ -n "$pe_run" ] || exit 0
for pe_dir in "$pe_run"/services/*; do
  [ -r "$pe_dir/digest" ] && read -r pe_digest <"$pe_dir/digest" || continue
  [ -r "$pe_dir/state" ] && read -r pe_state pe_code pe_restarts pe_since <"$pe_dir/state" || continue
  pe_supervised=gone
  pe_alive "$pe_dir/supervisor" && pe_supervised=alive
  # A state that ends is written by a supervisor about to end: read it again if it went away meanwhile.
  [ $pe_supervised = alive ] || read -r pe_state pe_code pe_restarts pe_since <"$pe_dir/state"
  printf 'service\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' \
    "${pe_dir##*/}" "$pe_digest" "$pe_state" "$pe_supervised" "$pe_code" "$pe_restarts" "$pe_since"
done
