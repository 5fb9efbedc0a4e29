# supervise.sh DIR LOGS POLICY MAX LOG_SIZE LOG_FILES PATH ARGV…: runs a service, and runs it again by its policy. Environment and working
# directory are the service's own. It outlives whoever started it, and keeps standard output open until it has taken over.
pe_dir=$1 pe_logs=$2 pe_policy=$3 pe_max=$4 pe_size=$5 pe_files=$6 pe_path=$7
shift 7

# Output goes through a pipe without a name to the pump. Opening both ends for once lets neither open wait for the other.
pe_open_log() {
  [ ! -e "$pe_dir/pipe" ] || rm -f "$pe_dir/pipe"
  mkfifo -m 600 "$pe_dir/pipe" || return 1
  exec 4<>"$pe_dir/pipe" 5<"$pe_dir/pipe" 3>"$pe_dir/pipe" 4>&-
  rm -f "$pe_dir/pipe" "$pe_dir/pump"
  # Whoever asks for the log before the pump is up finds it empty, and not missing.
  [ -e "$pe_logs/log" ] || true >"$pe_logs/log"
  # It may ignore SIGINT, as what a shell starts with `&` does.
  $pe_setsid sh "$pe_dir/pump.sh" "$pe_dir" "$pe_logs" "$pe_size" "$pe_files" <&5 >/dev/null 2>&1 3>&- 5<&- &
  exec 5<&-
}

# Seconds by a clock that nobody sets, where there is one.
pe_clock() {
  if read -r pe_now pe_rest </proc/uptime; then pe_now=${pe_now%%.*}; else pe_now=$(date +%s); fi
} 2>/dev/null

pe_become() { # STATE
  pe_put "$pe_dir/state" "$1" "$pe_code" "$pe_restarts" "$(date +%s)"
}

# What the process left behind in its session would hold its ports and files.
pe_clear_group() {
  [ -r "$pe_dir/child" ] && read -r pe_pid pe_rest <"$pe_dir/child" || return 0
  pe_waited=0
  while kill -s 0 -- "-$pe_pid" 2>/dev/null && [ "$pe_waited" -lt 2000 ]; do
    if [ "$pe_waited" -lt 1000 ]; then kill -s TERM -- "-$pe_pid"; else kill -s KILL -- "-$pe_pid"; fi
    pe_nap
  done
} 2>/dev/null

pe_code=- pe_restarts=0 pe_row=0 pe_delay=1
pe_start_of $$
pe_put "$pe_dir/supervisor" $$ "$pe_start"
pe_setsid=
if command -v setsid >/dev/null 2>&1; then pe_setsid=setsid; fi
pe_open_log || exit 1
while :; do
  if [ -e "$pe_dir/stopping" ]; then pe_become stopped; exit 0; fi
  [ ! -e "$pe_dir/child" ] || rm -f "$pe_dir/child"
  pe_become running
  pe_clock
  pe_begun=$pe_now
  exec >/dev/null
  $pe_setsid sh "$pe_dir/launch.sh" "$pe_dir" "$pe_path" "$@" </dev/null >&3 2>&3 3>&-
  pe_code=$?
  if [ -e "$pe_dir/stopping" ]; then pe_become stopped; exit 0; fi
  pe_clear_group
  pe_clock
  if [ $((pe_now - pe_begun)) -ge 10 ]; then pe_row=0 pe_delay=1; fi
  case $pe_policy:$pe_code in
  always:*) ;;
  *:0) pe_become completed; exit 0 ;;
  never:*) pe_become failed; exit 0 ;;
  *)
    if [ "$pe_max" != - ] && [ "$pe_row" -ge "$pe_max" ]; then pe_become failed; exit 0; fi
    ;;
  esac
  pe_become backoff
  sleep "$pe_delay" 3>&-
  pe_row=$((pe_row + 1)) pe_restarts=$((pe_restarts + 1)) pe_delay=$((pe_delay * 2))
  [ "$pe_delay" -le 60 ] || pe_delay=60
  pe_alive "$pe_dir/pump" || pe_open_log || exit 1
done
