# stop.sh NAME [remove]: stops a service; with `remove` nothing of it is left.
pe_find_run
pe_dir=$pe_run/services/$1
if [ -n "$pe_run" ] && [ -d "$pe_dir" ]; then pe_stop_service "$pe_dir"; fi
if [ "${2-}" = remove ]; then
  { [ -z "$pe_run" ] || rm -rf "$pe_dir"; } && rm -rf "$pe_log/$1" || pe_fail 70 "cannot remove $pe_dir"
fi
