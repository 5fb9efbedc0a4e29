# links.sh PORT…: comes back when something listens on each of the ports; with 1 and the port that is missing after ten seconds.
pe_left=100
for pe_port in "$@"; do
  while ! pe_listens "$pe_port"; do
    pe_left=$((pe_left - 1))
    if [ "$pe_left" -le 0 ]; then echo "$pe_port"; exit 1; fi
    sleep 0.1 2>/dev/null || { sleep 1; pe_left=$((pe_left - 9)); }
  done
done
