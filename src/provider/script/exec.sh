# exec.sh MODE DIR ARGV…: says who it is, takes the environment from standard input, and says why it cannot go on; what follows starts the command.
# MODE is `tty` on a terminal. DIR is empty for the user's home. An environment is lines `NAME=VALUE`, a value with a backslash being one for
# `printf %b`, and an empty line at the end: nothing of ours starts before it, and whoever sends it knows then whom to kill.
pe_mode=$1 pe_dir=$2 pe_home=${HOME:-/}
shift 2

pe_start() { set -f; set -- ${1##*) }; set +f; pe_started=${20}; }
read -r pe_stat <"/proc/$$/stat" && pe_start "$pe_stat"

pe_say() { printf '%s\n' "$*"; }

# On a terminal nothing is shown of what is sent, no byte of it is a key, and nobody waits for ever.
pe_saved=
if [ "$pe_mode" = tty ]; then
  pe_saved=$(stty -g 2>/dev/null) && stty raw -echo min 0 time 100 2>/dev/null || pe_saved=
fi

# What presets put there is found without a shell that reads its profile.
case :$PATH: in
*:"$pe_home/.local/bin":*) ;;
*) export PATH="$pe_home/.local/bin:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}" ;;
esac

pe_say "pocketenv $$ $pe_started"
pe_go=
while IFS= read -r pe_line; do
  if [ -z "$pe_line" ]; then pe_go=1; break; fi
  pe_value=${pe_line#*=}
  case $pe_value in
  *\\*) pe_value=$(printf '%b.' "$pe_value") && pe_value=${pe_value%.} ;;
  esac
  export "${pe_line%%=*}=$pe_value"
done 2>/dev/null
[ -n "$pe_go" ] || exit 125
[ -z "$pe_saved" ] || stty "$pe_saved"

cd "${pe_dir:-$pe_home}" 2>/dev/null || { [ -z "$pe_dir" ] && cd /; } || { pe_say "no directory"; exit 125; }

# Sets pe_found to `missing`, `refused` or `ok`.
pe_look() {
  [ -e "$1" ] || return
  pe_found=refused
  [ ! -f "$1" ] || [ ! -x "$1" ] || pe_found=ok
}
pe_found=missing
case $1 in
*/*) pe_look "$1" ;;
*)
  pe_rest=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}:
  while [ -n "$pe_rest" ] && [ "$pe_found" != ok ]; do
    pe_look "${pe_rest%%:*}/$1"
    pe_rest=${pe_rest#*:}
  done
  ;;
esac
[ "$pe_found" = ok ] || { pe_say "no $pe_found"; exit 125; }
