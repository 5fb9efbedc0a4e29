# start.sh STAGE NAME DIGEST SIGNAL STOP_MS USER DIR LOGS POLICY MAX LOG_SIZE LOG_FILES SUPERVISE LAUNCH PUMP ARGV…: starts a service.
# Stage `all` does it in one go. For another user, `prepare` makes that user's directories and prints them, and `launch`, run as that user, gets
# them as DIR and LOGS. The last texts are the scripts that stay behind.
pe_stage=$1 pe_name=$2 pe_digest=$3 pe_stop_line="$4 $5" pe_user=$6 pe_dir=$7 pe_logs=$8
shift 8
pe_policy=$1 pe_max=$2 pe_size=$3 pe_files=$4 pe_supervise=$5 pe_launch=$6 pe_pump=$7
shift 7
pe_path=$PATH
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ "$pe_stage" != launch ]; then
  pe_make_run
  pe_dir=$pe_run/services/$pe_name pe_logs=$pe_log/$pe_name
  pe_state= pe_old=
  [ ! -r "$pe_dir/state" ] || read -r pe_state pe_rest <"$pe_dir/state"
  [ ! -r "$pe_dir/digest" ] || read -r pe_old <"$pe_dir/digest"
  case $pe_state in
  running | backoff)
    if [ "$pe_old" = "$pe_digest" ] && pe_alive "$pe_dir/supervisor"; then echo same; exit 0; fi
    ;;
  esac
  if [ -d "$pe_dir" ]; then
    pe_stop_service "$pe_dir"
    rm -rf "$pe_dir"
  fi
  # Two starts may make the first one at the same moment.
  { [ -d "$pe_run/services" ] || mkdir -p -m 711 "$pe_run/services"; } &&
    mkdir -m 700 "$pe_dir" && { [ -d "$pe_logs" ] || mkdir -p "$pe_logs"; } ||
    pe_fail 70 "cannot make $pe_dir and $pe_logs"
  printf '%s\n' "$pe_stop_line" >"$pe_dir/stop" && printf '%s\n' "$pe_digest" >"$pe_dir/digest" ||
    pe_fail 70 "cannot write into $pe_dir"
  if [ "$pe_stage" = prepare ]; then
    chown -R -- "$pe_user" "$pe_dir" "$pe_logs" || pe_fail 70 "cannot give $pe_dir to $pe_user"
    printf 'prepared\t%s\t%s\n' "$pe_dir" "$pe_logs"
    exit 0
  fi
fi

printf %s "$pe_supervise" >"$pe_dir/supervise.sh" && printf %s "$pe_launch" >"$pe_dir/launch.sh" &&
  printf %s "$pe_pump" >"$pe_dir/pump.sh" || pe_fail 70 "cannot write into $pe_dir"
# The supervisor lets go of its output when it has taken over, or by its end.
pe_said=$(pe_detach sh "$pe_dir/supervise.sh" "$pe_dir" "$pe_logs" "$pe_policy" "$pe_max" "$pe_size" "$pe_files" "$pe_path" "$@" \
  </dev/null 2>"$pe_dir/errors")
[ -s "$pe_dir/state" ] || pe_fail 74 "the supervisor did not start: $(cat "$pe_dir/errors")"
echo started
