#!/bin/busybox sh
# A guest's first and only process: runs the job that the kernel's command line names, says how it ended, powers off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
exec </dev/hvc0 >/dev/hvc0 2>&1
ip link set lo up 2>/dev/null

load() {
    for name; do
        while read -r file; do
            insmod "/mods/$file" 2>/dev/null
        done <"/mods/$name.list"
    done
}

for word in $(cat /proc/cmdline); do
    case $word in job=*) job=${word#job=} ;; esac
done
. "/jobs/$job.sh"
echo "job $job ended with $?"
poweroff -f
