#!/bin/sh
# Starts a systemd of its own as PID 1 of new namespaces, on the programs of this machine. Nothing of it is seen outside, and it ends with
# the process that started it. In a mount namespace of its own: systemd.sh DIRECTORY PROGRAM; what it has in /var is in DIRECTORY/var.
set -eu
dir=$1 program=$2

# Second part, inside.
if [ "${3-}" = inside ]; then
  root=$dir/root
  mount -t tmpfs -o mode=0755 tmpfs "$root"
  mkdir "$root/etc" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/var" "$root/root" "$root/home" "$root/upper" "$root/work" "$root/old"
  mkdir -m 1777 "$root/tmp"
  for top in bin lib lib32 lib64 libx32 sbin usr; do
    if [ -L "/$top" ]; then
      cp -a "/$top" "$root/$top"
    elif [ -d "/$top" ]; then
      mkdir "$root/$top"
      mount --bind "/$top" "$root/$top"
    fi
  done
  mount -t tmpfs -o mode=0755 tmpfs "$root/usr/local/bin"
  touch "$root/usr/local/bin/pocketenv"
  mount --bind "$program" "$root/usr/local/bin/pocketenv"
  mount -t overlay -o "lowerdir=/etc,upperdir=$root/upper,workdir=$root/work" overlay "$root/etc"
  # Nothing of the machine is started: there is only what is needed to start anything.
  mount -t tmpfs -o mode=0755 tmpfs "$root/etc/systemd/system"
  for target in basic sysinit multi-user network-online shutdown; do
    ln -s "/lib/systemd/system/$target.target" "$root/etc/systemd/system/$target.target"
  done
  mount --bind "$dir/var" "$root/var"
  mount --rbind /dev "$root/dev"
  mount --rbind /sys "$root/sys"
  umount -R "$root/sys/fs/cgroup"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=0755 tmpfs "$root/run"
  cd "$root"
  pivot_root . old
  umount -l /old
  # By this name it knows that the machine is not its own.
  exec env -i container=test PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/etc/systemd/system \
    SYSTEMD_GENERATOR_PATH=/var/empty /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
fi

mount --make-rprivate /
mkdir "$dir/root" "$dir/cgroup"
mount -t cgroup2 cgroup2 "$dir/cgroup"
mkdir "$dir/cgroup/${dir##*/}"
echo $$ > "$dir/cgroup/${dir##*/}/cgroup.procs"
umount "$dir/cgroup"
exec unshare --cgroup --mount --ipc --uts --pid --fork --kill-child sh "$0" "$dir" "$program" inside
