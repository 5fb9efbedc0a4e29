# DIR OTHER PROGRAM ARG…: says its process id in one line, or `!` and why it cannot begin, and becomes the program.
# OTHER is where it runs if it cannot in DIR; nothing if that is an error.
cd -- "$1" 2>/dev/null || { [ -n "$2" ] && cd -- "$2"; } 2>/dev/null || { printf '!dir\n'; exit 1; }
shift 2
command -v "$1" >/dev/null 2>&1 || {
  # Programs for these sandboxes expect bash; where there is none, sh does for most of what they run.
  case $1 in
    bash | /bin/bash | /usr/bin/bash) shift; set -- /bin/sh "$@" ;;
    *) printf '!program\n'; exit 1 ;;
  esac
}
printf '%s\n' "$$"
exec "$@"
