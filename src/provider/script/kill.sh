# kill.sh PID START: kills the process PID that started at START, with every process of its session and group. One that is gone is fine.
pe_fields() { set -f; set -- ${1##*) }; set +f; pe_group=$3 pe_session=$4 pe_started=${20}; }
read -r pe_stat <"/proc/$1/stat" 2>/dev/null || pe_stat=
if [ -n "$pe_stat" ]; then
  pe_fields "$pe_stat"
  # The number has been given to somebody else since.
  [ "$pe_started" = "$2" ] || exit 0
fi
pe_rounds=0
while [ "$pe_rounds" -lt 5 ]; do
  pe_left=
  for pe_process in /proc/[0-9]*; do
    read -r pe_stat <"$pe_process/stat" || continue
    pe_fields "$pe_stat"
    case ${pe_stat##*) } in Z*) continue ;; esac
    if [ "$pe_session" = "$1" ] || [ "$pe_group" = "$1" ]; then
      kill -s KILL "${pe_process#/proc/}" && pe_left=1
    fi
  done 2>/dev/null
  [ -n "$pe_left" ] || exit 0
  pe_rounds=$((pe_rounds + 1))
done
