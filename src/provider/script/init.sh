# init.sh PERL PYTHON: the first process of a sandbox. It collects processes that nobody waits for, keeps a relay for each line `PORT HOST TO` of the
# file of links (HUP: the file has changed), and when it is asked to end gives every process ten seconds to do the same.
pe_links=/var/lib/pocketenv-links
pe_perl=$1 pe_python=$2

pe_end() {
  trap '' TERM INT HUP
  kill -s TERM -1
  kill -s CONT -1
  pe_left=100
  while [ "$pe_left" -gt 0 ]; do
    pe_others=
    for pe_process in /proc/[0-9]*; do
      [ "${pe_process#/proc/}" = "$$" ] || pe_others=1
    done
    [ -n "$pe_others" ] || break
    sleep 0.1 || { sleep 1; pe_left=$((pe_left - 9)); }
    pe_left=$((pe_left - 1))
  done
  exit 0
} 2>/dev/null

# Listens on port $1 of the loopback and leads what comes to port $3 of host $2.
pe_relay() {
  if command -v perl; then exec perl -e "$pe_perl" listen "$1" "$2" "$3"; fi
  if command -v python3; then exec python3 -c "$pe_python" listen "$1" "$2" "$3"; fi
  case $(nc --help 2>&1) in
  *-lk*) exec nc -lk -s 127.0.0.1 -p "$1" -e nc "$2" "$3" ;;
  *-ll*) exec nc -ll -p "$1" -e nc "$2" "$3" ;;
  esac
} >/dev/null 2>&1 </dev/null

trap pe_end TERM INT
trap 'pe_again=1' HUP
while :; do
  pe_again= pe_relays=
  if [ -s "$pe_links" ]; then
    while read -r pe_port pe_host pe_to; do
      pe_relay "$pe_port" "$pe_host" "$pe_to" &
      pe_relays="$pe_relays $!"
    done <"$pe_links"
  fi
  while [ -z "$pe_again" ]; do
    pe_pause=86400
    [ -z "$pe_relays" ] || pe_pause=2
    sleep "$pe_pause" &
    pe_sleep=$!
    wait "$pe_sleep"
    for pe_one in $pe_relays; do
      kill -s 0 "$pe_one" 2>/dev/null || pe_again=1
    done
  done
  for pe_one in $pe_sleep $pe_relays; do
    kill -s KILL "$pe_one" 2>/dev/null && wait "$pe_one"
  done
done
