# digest.sh NAME: prints what a service was started from; nothing if it was not started.
pe_find_run
[ -n "$pe_run" ] && [ -r "$pe_run/services/$1/digest" ] || exit 0
cat "$pe_run/services/$1/digest"
