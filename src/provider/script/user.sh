# user.sh USER ROWS COLS MARK …: finds out who is to run the command, and what a terminal has to be told. USER is empty for the container's own.
pe_user=$1 pe_rows=$2 pe_cols=$3 pe_mark=$4
shift 4

pe_refused= pe_uid= pe_gid= pe_login=
if [ -n "$pe_user" ]; then
  pe_group=
  case $pe_user in
  *:*) pe_group=${pe_user#*:} pe_user=${pe_user%%:*} ;;
  esac
  while IFS=: read -r pe_name pe_x pe_u pe_g pe_x pe_dir pe_x; do
    if [ "$pe_name" = "$pe_user" ] || [ "$pe_u" = "$pe_user" ]; then
      pe_uid=$pe_u pe_gid=$pe_g pe_login=$pe_name HOME=$pe_dir
      export HOME
      break
    fi
  done </etc/passwd 2>/dev/null
  case ${pe_uid:-$pe_user}${pe_group:-0} in
  *[!0-9]*) pe_refused=user ;;
  esac
  pe_uid=${pe_uid:-$pe_user}
  if [ -n "$pe_group" ] && [ "$pe_group" != "${pe_gid:-0}" ]; then pe_gid=$pe_group pe_login=; fi
  pe_gid=${pe_gid:-0}
  # Nothing is to be done for who it is already.
  if [ "$(id -u) $(id -g)" = "$pe_uid $pe_gid" ]; then pe_uid=; fi
fi

# Becomes the command, as the user.
pe_become() {
  [ -n "$pe_uid" ] || exec "$@"
  pe_groups=--clear-groups
  [ -z "$pe_login" ] || pe_groups=--init-groups
  if setpriv --reuid "$pe_uid" --regid "$pe_gid" "$pe_groups" true 2>/dev/null; then
    exec setpriv --reuid "$pe_uid" --regid "$pe_gid" "$pe_groups" "$@"
  fi
  if chroot --userspec "$pe_uid:$pe_gid" / true 2>/dev/null; then
    exec chroot --userspec "$pe_uid:$pe_gid" / sh -c 'cd "$1" && shift && exec "$@"' sh "$PWD" "$@"
  fi
  exec su -m -s /bin/sh -c 'exec "$@"' -- "$pe_login" sh "$@"
}

# Whether it can.
if [ -n "$pe_uid" ] && [ -z "$pe_refused" ]; then
  [ "$(pe_become sh -c 'id -u' 2>/dev/null)" = "$pe_uid" ] || pe_refused=switch
fi
[ -z "$pe_rows" ] || stty rows "$pe_rows" cols "$pe_cols" 2>/dev/null
