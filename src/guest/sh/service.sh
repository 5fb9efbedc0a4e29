# Starting and stopping supervised services. A service's runtime state is the directory $pe_run/services/NAME:
#   digest      what it was started from          stop    signal and milliseconds for its end
#   supervisor  PID START of supervise.sh         child   PID START of the process, leader of its own session
#   state       STATE CODE RESTARTS SINCE         stopping  present: it is not to be started again
# Stopping is done from outside: the supervisor waits for its child in the foreground, because a shell makes background children ignore SIGINT.

# Runs a command in a session of its own and comes back at once. The second setsid finds itself leading a group, so it forks: the command is
# detached without `&`, and with it without the ignored SIGINT.
pe_detach() {
  if command -v setsid >/dev/null 2>&1; then setsid setsid "$@"; else "$@" & fi
}

# Waits about 5 ms, and 20 when there was waiting already; adds to pe_waited. Some shells' sleep knows whole seconds only.
pe_nap() {
  if [ "$pe_waited" -lt 30 ]; then pe_pause=0.004 pe_passed=6; else pe_pause=0.02 pe_passed=22; fi
  if sleep "$pe_pause" 2>/dev/null; then pe_waited=$((pe_waited + pe_passed)); else sleep 1; pe_waited=$((pe_waited + 1000)); fi
}

pe_signal_group() { # SIGNAL PID
  kill -s "$1" -- "-$2" 2>/dev/null || kill -s "$1" "$2" 2>/dev/null
}

# Ends the service of directory $1 gracefully, in the time it was given, and its supervisor.
pe_stop_service() {
  pe_dir=$1 pe_waited=0 pe_group=
  pe_signal=TERM pe_limit=10000
  [ ! -r "$pe_dir/stop" ] || read -r pe_signal pe_limit <"$pe_dir/stop"
  : >"$pe_dir/stopping"
  while :; do
    pe_busy=
    if pe_alive "$pe_dir/child"; then
      pe_busy=1
      if [ "$pe_pid" != "$pe_group" ]; then
        pe_group=$pe_pid
        pe_signal_group "$pe_signal" "$pe_pid"
      fi
    elif [ -n "$pe_group" ] && kill -s 0 -- "-$pe_group" 2>/dev/null; then
      pe_busy=1
    fi
    if pe_alive "$pe_dir/supervisor"; then
      pe_busy=1
      pe_state=
      [ ! -r "$pe_dir/state" ] || read -r pe_state pe_rest <"$pe_dir/state"
      # It only waits for the time to start again.
      [ "$pe_state" != backoff ] || pe_signal_group KILL "$pe_pid"
    fi
    [ -n "$pe_busy" ] || break
    if [ "$pe_waited" -ge "$pe_limit" ]; then
      [ -z "$pe_group" ] || pe_signal_group KILL "$pe_group"
      # Only what cannot die, and zombies that nobody collects, are still there after the kill.
      if [ "$pe_waited" -ge "$((pe_limit + 3000))" ]; then
        ! pe_alive "$pe_dir/supervisor" || pe_signal_group KILL "$pe_pid"
        ! pe_alive "$pe_dir/child" || pe_fail 73 "process $pe_pid does not end"
        break
      fi
    fi
    pe_nap
  done
  pe_state=- pe_code=- pe_restarts=0
  [ ! -r "$pe_dir/state" ] || read -r pe_state pe_code pe_restarts pe_since <"$pe_dir/state"
  [ "$pe_state" = stopped ] || pe_put "$pe_dir/state" stopped "$pe_code" "$pe_restarts" "$(date +%s)"
}
