# step.sh IF UNLESS RUN SHELL…: one attempt at a preset's step. Output of its scripts goes to standard output; standard error carries the verdict
# alone: `skipped if`, `skipped unless`, `ran CODE`.
exec 3>&2 2>&1
pe_if=$1 pe_unless=$2 pe_run_text=$3
shift 3
pe_dir=$(mktemp -d) || exit 1
trap 'rm -rf "$pe_dir"' EXIT
trap 'exit 143' TERM INT HUP
pe_script() { # TEXT SHELL…
  printf '%s\n' "$1" >"$pe_dir/step" || exit 1
  shift
  "$@" "$pe_dir/step" 3>&- </dev/null
}
if [ -n "$pe_if" ] && ! pe_script "$pe_if" "$@"; then echo 'skipped if' >&3; exit 0; fi
if [ -n "$pe_unless" ] && pe_script "$pe_unless" "$@"; then echo 'skipped unless' >&3; exit 0; fi
# A shell goes on after a command that failed; a step that goes on half done is not done.
case ${1##*/}:$# in sh:1 | bash:1 | dash:1 | ash:1 | ksh:1 | zsh:1) set -- "$1" -e ;; esac
pe_script "$pe_run_text" "$@"
echo "ran $?" >&3
