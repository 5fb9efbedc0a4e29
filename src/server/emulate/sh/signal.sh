# SIGNAL PID: sends it to the process and to what it started.
kill -s "$1" "-$2" 2>/dev/null || kill -s "$1" "$2"
