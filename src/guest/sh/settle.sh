# settle.sh NAME: comes back when the service NAME has started up, which is when all its processes wait for something and did nothing in between two
# looks, and then it says `settled`; when it does not run; and after a quarter of a second at the latest.
pe_find_run
pe_dir=$pe_run/services/$1

# Sets pe_trace to what the processes of session $1 have done so far: page faults and processor time of each. Fails if one is at work.
pe_look() {
  pe_leader=$1 pe_trace=
  for pe_process in /proc/[0-9]*; do
    read -r pe_stat <"$pe_process/stat" || continue
    set -f
    set -- ${pe_stat##*) }
    set +f
    [ "$4" = "$pe_leader" ] || continue
    case $1 in S | I | T) ;; *) return 1 ;; esac
    pe_trace="$pe_trace ${pe_process#/proc/}:$8:${10}:${12}:${13}"
  done
  [ -n "$pe_trace" ]
} 2>/dev/null

pe_before= pe_looks=0
while [ "$pe_looks" -lt 24 ]; do
  [ -r "$pe_dir/state" ] && read -r pe_state pe_rest <"$pe_dir/state" && [ "$pe_state" = running ] || exit 0
  if pe_alive "$pe_dir/child" && pe_look "$pe_pid"; then
    if [ "$pe_trace" = "$pe_before" ]; then
      ! pe_alive "$pe_dir/supervisor" || echo settled
      exit 0
    fi
    pe_before=$pe_trace
  else
    pe_before=
  fi
  # Most are up at once; whoever takes longer is not looked at all the time.
  if [ "$pe_looks" -lt 4 ]; then pe_pause=0.004; else pe_pause=0.012; fi
  # Some shells' sleep knows whole seconds only.
  sleep "$pe_pause" 2>/dev/null || { sleep 1; exit 0; }
  pe_looks=$((pe_looks + 1))
done
