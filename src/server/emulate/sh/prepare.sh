# NAME: makes sure that there is a user of this name with a home, and says `uid:gid:home`. Nothing is said where that cannot be.
found() { # sets line to the entry of user $1
  while IFS= read -r line; do
    case $line in "$1":*) return 0 ;; esac
  done </etc/passwd
  return 1
}
taken() { # ID: whether a user or group has this number
  while IFS=: read -r name mark number rest; do [ "$number" != "$1" ] || return 0; done </etc/passwd
  while IFS=: read -r name mark number rest; do [ "$number" != "$1" ] || return 0; done </etc/group
  return 1
}
[ -r /etc/passwd ] && [ -r /etc/group ] || exit 0
if ! found "$1"; then
  [ -w /etc/passwd ] && [ -w /etc/group ] || exit 0
  new=1000
  while taken "$new"; do new=$((new + 1)); done
  shell=/bin/sh
  [ ! -x /bin/bash ] || shell=/bin/bash
  printf '%s:x:%s:\n' "$1" "$new" >>/etc/group
  printf '%s:x:%s:%s::/home/%s:%s\n' "$1" "$new" "$new" "$1" "$shell" >>/etc/passwd
  found "$1" || exit 0
fi
IFS=: read -r name mark uid gid gecos home shell <<END
$line
END
if [ ! -d "$home" ]; then
  mkdir -p "$home" || exit 0
  # Where only one id is to be had the home is everybody's anyway.
  chown "$uid:$gid" "$home" 2>/dev/null
fi
printf '%s:%s:%s\n' "$uid" "$gid" "$home"
