# isolation.sh NETWORK RULES HOST: tries ways out of this sandbox. For each one a line: NAME<TAB>held|broken|unknown<TAB>EVIDENCE.
# NETWORK is isolated, none or host; RULES is deny where outbound access is by rules; HOST is 1 where the system directories are those of the
# machine. Nothing is changed: what is opened for writing is not written, what is made or mounted because nothing held it back is removed again.
pe_tell() { printf '%s\t%s\t%s\n' "$1" "$2" "$3"; }
pe_has() { command -v "$1" >/dev/null 2>&1; }
pe_field() { # NAME: a field of this process's status
  while read -r pe_key pe_value; do
    [ "$pe_key" != "$1:" ] || { printf %s "$pe_value"; return; }
  done </proc/self/status
}
# A file that is not hidden behind an empty device, and that opens for writing.
pe_opens() { [ ! -c "$1" ] && (: >>"$1") 2>/dev/null; }

if read -r pe_inside pe_outside pe_count </proc/self/uid_map 2>/dev/null; then
  if [ "$pe_outside" = 0 ] && [ "$pe_inside" = 0 ]; then
    pe_tell root broken "root inside is root of the machine"
  else
    pe_tell root held "user $pe_inside inside is user $pe_outside outside"
  fi
else
  pe_tell root unknown "/proc/self/uid_map cannot be read"
fi

pe_value=$(pe_field NoNewPrivs)
case $pe_value in 1) pe_tell new-privileges held "NoNewPrivs: 1" ;; *) pe_tell new-privileges broken "NoNewPrivs: ${pe_value:-unset}" ;; esac
pe_value=$(pe_field Seccomp)
case $pe_value in 2) pe_tell system-calls held "Seccomp: 2" ;; *) pe_tell system-calls broken "Seccomp: ${pe_value:-unset}: no filter" ;; esac

pe_value=$(pe_field CapBnd)
case $pe_value in
'' | *[!0-9a-f]*) pe_tell capabilities unknown "CapBnd: $pe_value" ;;
*)
  pe_kept=
  for pe_capability in net_admin:12 sys_module:16 sys_rawio:17 sys_ptrace:19 sys_admin:21 sys_boot:22 sys_time:25 syslog:34 bpf:39; do
    [ $(((0x$pe_value >> ${pe_capability#*:}) & 1)) = 0 ] || pe_kept="$pe_kept ${pe_capability%:*}"
  done
  if [ -z "$pe_kept" ]; then pe_tell capabilities held "CapBnd: $pe_value"; else pe_tell capabilities broken "within reach:$pe_kept"; fi
  ;;
esac

pe_value=
[ ! -r /proc/2/comm ] || read -r pe_value </proc/2/comm
if [ "$pe_value" = kthreadd ]; then
  pe_tell processes broken "the kernel's own threads are in sight, so are all processes of the machine"
else
  pe_tell processes held "no process of the machine is in sight"
fi

pe_place=$(mktemp -d 2>/dev/null)
if [ -z "$pe_place" ] || ! pe_has mount; then
  pe_tell mounts unknown "no mount program, or no temporary directory"
elif mount -t tmpfs pocketenv-probe "$pe_place" 2>/dev/null; then
  umount "$pe_place" 2>/dev/null
  pe_tell mounts broken "a file system was mounted"
else
  pe_tell mounts held "mounting is refused"
fi
[ -z "$pe_place" ] || rmdir "$pe_place" 2>/dev/null

if ! pe_has unshare; then
  pe_tell namespaces unknown "no unshare program"
elif unshare -U true 2>/dev/null || unshare -m true 2>/dev/null; then
  pe_tell namespaces broken "a new namespace was made"
else
  pe_tell namespaces held "new namespaces are refused"
fi

pe_value=
for pe_path in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sysrq-trigger; do
  ! pe_opens "$pe_path" || pe_value="$pe_value $pe_path"
done
if [ -z "$pe_value" ]; then pe_tell kernel-settings held "none opens for writing"; else pe_tell kernel-settings broken "open for writing:$pe_value"; fi

pe_value=
[ "$(head -c 1 /proc/kcore 2>/dev/null | wc -c)" -eq 0 ] || pe_value=" /proc/kcore"
for pe_path in /dev/mem /dev/kmem /dev/port /dev/kmsg; do [ ! -r "$pe_path" ] || pe_value="$pe_value $pe_path"; done
if [ -z "$pe_value" ]; then pe_tell kernel-memory held "neither memory nor messages of the kernel can be read"; else pe_tell kernel-memory broken "readable:$pe_value"; fi

pe_value=
for pe_path in /dev/* /dev/mapper/*; do [ ! -b "$pe_path" ] || pe_value="$pe_value $pe_path"; done
if [ -z "$pe_value" ]; then pe_tell devices held "no disk of the machine"; else pe_tell devices broken "disks:$pe_value"; fi

pe_value=
for pe_path in /sys/kernel/uevent_helper /sys/power/state /sys/kernel/mm/transparent_hugepage/enabled /sys/module/kernel/parameters/panic; do
  ! pe_opens "$pe_path" || pe_value="$pe_value $pe_path"
done
if [ -z "$pe_value" ]; then pe_tell sysfs held "none opens for writing"; else pe_tell sysfs broken "open for writing:$pe_value"; fi

pe_value=
for pe_path in /sys/fs/cgroup /sys/fs/cgroup/memory /sys/fs/cgroup/unified; do
  if mkdir "$pe_path/pocketenv-probe" 2>/dev/null; then
    rmdir "$pe_path/pocketenv-probe"
    pe_value="$pe_value $pe_path"
  fi
done
if [ -z "$pe_value" ]; then pe_tell cgroups held "no control group can be made"; else pe_tell cgroups broken "groups can be made in:$pe_value"; fi

pe_value=
for pe_path in /run/docker.sock /var/run/docker.sock /run/containerd/containerd.sock /run/podman/podman.sock /run/crio/crio.sock \
  /run/systemd/private /run/dbus/system_bus_socket; do
  [ ! -S "$pe_path" ] || pe_value="$pe_value $pe_path"
done
if [ -z "$pe_value" ]; then pe_tell control-sockets held "no socket that commands the machine"; else pe_tell control-sockets broken "in sight:$pe_value"; fi

if [ -c /proc/keys ] || [ ! -r /proc/keys ] || [ "$(wc -l </proc/keys)" -eq 0 ]; then
  pe_tell keys held "no key of the kernel's keyrings"
else
  pe_tell keys broken "keyrings are in sight"
fi

if [ "$3" = 1 ]; then
  if grep -q ':\$' /etc/shadow 2>/dev/null; then
    pe_tell passwords broken "/etc/shadow of the machine can be read"
  else
    pe_tell passwords held "no password of the machine"
  fi
fi

[ "$1" != host ] || exit 0

pe_value=
while IFS=: read -r pe_name pe_rest; do
  # Two lines of titles come first.
  case $pe_name in *'|'*) continue ;; esac
  pe_name=${pe_name##* }
  [ "$pe_name" = lo ] || pe_value="$pe_value $pe_name"
done </proc/net/dev
if [ -z "$pe_value" ]; then pe_tell interfaces held "loopback only"; else pe_tell interfaces broken "network interfaces:$pe_value"; fi

pe_value=$(wc -l </proc/net/route) 2>/dev/null
if [ -z "$pe_value" ]; then
  pe_tell routes unknown "/proc/net/route cannot be read"
elif [ "$pe_value" -le 1 ]; then
  pe_tell routes held "no route leads anywhere"
else
  pe_tell routes broken "there are routes"
fi

[ "$1" = isolated ] || exit 0

pe_proxy=${http_proxy:-}
# The proxy refuses with 403; whatever else it says, it tried.
pe_refuses() { # NAME URL WHAT
  case $(curl -s -m 10 -o /dev/null -w '%{http_code}' --noproxy '' -x "$pe_proxy" "$2" 2>/dev/null) in
  403) pe_tell "$1" held "the way out refuses $3" ;;
  000) pe_tell "$1" unknown "the way out does not answer" ;;
  *) pe_tell "$1" broken "the way out tries $3" ;;
  esac
}
if [ -z "$pe_proxy" ]; then
  for pe_name in host-services metadata; do pe_tell "$pe_name" held "there is no way out"; done
  [ "$2" != deny ] || pe_tell egress-rules held "there is no way out"
elif ! pe_has curl; then
  pe_tell host-services unknown "no curl to ask the way out with"
  pe_tell metadata unknown "no curl to ask the way out with"
  [ "$2" != deny ] || pe_tell egress-rules unknown "no curl to ask the way out with"
else
  pe_refuses host-services http://127.0.0.1:9/ "this machine's loopback"
  pe_refuses metadata http://169.254.169.254/ "the metadata service"
  [ "$2" != deny ] || pe_refuses egress-rules http://pocketenv-probe.invalid/ "a name that no rule allows"
fi
