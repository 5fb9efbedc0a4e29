# Whether anything listens on TCP port $1 of the IPv4 loopback, by the kernel's tables.
pe_listens() {
  pe_hex=$(printf '%04X' "$1")
  for pe_table in /proc/net/tcp /proc/net/tcp6; do
    [ -r "$pe_table" ] || continue
    while read -r pe_slot pe_local pe_remote pe_state pe_rest; do
      # 0A is LISTEN; the address is 127.x.x.x, any, or any of both kinds.
      case $pe_state:$pe_local in
      0A:??????7F:"$pe_hex" | 0A:00000000:"$pe_hex" | 0A:00000000000000000000000000000000:"$pe_hex" | 0A:0000000000000000FFFF0000??????7F:"$pe_hex") return 0 ;;
      esac
    done <"$pe_table"
  done
  return 1
}
