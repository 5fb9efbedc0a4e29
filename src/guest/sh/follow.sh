# follow.sh: prints `NAME STATE CODE RESTARTS` for each service now, and again whenever it changes. `dead` is a service whose supervisor is gone. Ends when
# nobody reads.
set -f
pe_known=' '
while :; do
  pe_find_run
  set +f
  set -- "$pe_run"/services/*
  set -f
  pe_now=' '
  for pe_dir do
    [ -n "$pe_run" ] && [ -r "$pe_dir/state" ] && read -r pe_state pe_code pe_restarts pe_since <"$pe_dir/state" || continue
    case $pe_state in
    running | backoff) pe_alive "$pe_dir/supervisor" || pe_state=dead ;;
    esac
    pe_line="${pe_dir##*/}	$pe_state	$pe_code	$pe_restarts"
    case $pe_known in *" $pe_line "*) ;; *) printf '%s\n' "$pe_line" || exit 0 ;; esac
    pe_now="$pe_now$pe_line "
  done
  pe_known=$pe_now
  sleep 0.5 2>/dev/null || sleep 1
done
