# Who is to own what is put inside. For whoever is not root nobody but himself can: then pe_owner is empty, as it is without an owner.
pe_named= pe_owner=
pe_know_owner() { # OWNER
  [ "$1" != "$pe_named" ] || return 0
  pe_named=$1 pe_owner=$1
  [ -n "$1" ] || return 0
  pe_know_uid
  if [ "$pe_uid" = 0 ]; then
    # The group as well, where only a user is named.
    case $1 in
    *:*) ;;
    *[!0-9]*) pe_group=$(id -g -- "$1" 2>/dev/null) && pe_owner=$1:$pe_group ;;
    *) pe_group=$(id -g -- "$1" 2>/dev/null) || pe_group=$1; pe_owner=$1:$pe_group ;;
    esac
    return 0
  fi
  pe_me=$(id -un 2>/dev/null) || pe_me=$pe_uid
  pe_owner=
  # Root reads what is ours as well.
  case ${1%%:*} in
  "$pe_uid" | "$pe_me" | root | 0) ;;
  *) pe_fail 70 "files cannot be given to $1: they are written by $pe_me, who is not root; have that user run things, or name it as \`owner\`" ;;
  esac
}

pe_own() { # chown's options and paths
  [ -z "$pe_owner" ] || chown "$@" || pe_fail 70 "giving files to $pe_named failed; is there such a user inside?"
}
