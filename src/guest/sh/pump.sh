# pump.sh DIR LOGS SIZE FILES: appends standard input to LOGS/log as it comes, whatever the bytes are, and rotates it before it is longer than
# SIZE, keeping FILES old ones. dd writes what one read gave at once; between two runs of it nobody has the log open.
pe_dir=$1 pe_log=$2/log pe_size=$3 pe_files=$4
pe_start_of $$
pe_put "$pe_dir/pump" $$ "$pe_start"
pe_block=65536
[ $((pe_size / 2)) -ge $pe_block ] || pe_block=$((pe_size / 2))
[ $pe_block -ge 512 ] || pe_block=512

pe_length() {
  pe_bytes=0
  [ ! -s "$pe_log" ] || pe_bytes=$(stat -c %s "$pe_log" 2>/dev/null) || pe_bytes=0
}

pe_rotate() {
  if [ "$pe_files" -eq 0 ]; then : >"$pe_log"; return; fi
  pe_number=$pe_files
  while [ "$pe_number" -gt 1 ]; do
    [ ! -e "$pe_log.$((pe_number - 1))" ] || mv -f "$pe_log.$((pe_number - 1))" "$pe_log.$pe_number"
    pe_number=$((pe_number - 1))
  done
  mv -f "$pe_log" "$pe_log.1"
}

pe_length
: >>"$pe_log"
while :; do
  pe_blocks=$(((pe_size - pe_bytes) / pe_block))
  if [ "$pe_blocks" -lt 1 ]; then
    pe_rotate
    : >>"$pe_log"
    pe_blocks=$((pe_size / pe_block))
    pe_length
  fi
  pe_before=$pe_bytes
  if dd bs="$pe_block" count="$pe_blocks" >>"$pe_log" 2>/dev/null; then
    pe_length
    # It read nothing: every writer is gone.
    [ "$pe_bytes" != "$pe_before" ] || exit 0
  else
    # No space, or the directory is gone. The service must not stand still because of its log.
    sleep 1
    mkdir -p "${pe_log%/*}"
    pe_length
  fi
done 2>/dev/null
