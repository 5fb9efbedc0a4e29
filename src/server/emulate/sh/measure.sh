# What the inside shows of its use: memory, disk, processors, page size, ticks, and all processes twice.
sed -n 's/^\(MemTotal\|MemFree\|Cached\|MemAvailable\): */\1 /p' /proc/meminfo
printf 'disk '
df -Pk / | sed -n '2p'
printf 'cpus %s\n' "$(nproc 2>/dev/null || echo 1)"
printf 'page %s\n' "$(getconf PAGESIZE 2>/dev/null || echo 4096)"
printf 'ticks %s\n' "$(getconf CLK_TCK 2>/dev/null || echo 100)"
printf 'first\n'
cat /proc/[0-9]*/stat 2>/dev/null
sleep 0.2 2>/dev/null || sleep 1
printf 'second\n'
cat /proc/[0-9]*/stat 2>/dev/null
exit 0
