# Prints the environment that is in place: NAME=VALUE, each ended by a NUL.
pe_find_run
[ -z "$pe_run" ] || [ ! -e "$pe_run/env" ] || exec cat "$pe_run/env"
