#!/bin/busybox sh
# dom0's first steps: its root comes by 9p, read-only, with an overlay in memory; so does the work tree, at /mnt/tree:
# a staged one in the same way, a live one as it is. /mnt/out is a folder of the machine outside: orders go in, results
# come out.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /mods/*.list); do
    insmod "/mods/$module" 2>/dev/null # some are named twice
done
mkdir -p /lower/root /lower/tree /upper /new
mount -t tmpfs -o size=1500M tmpfs /upper
options=trans=virtio,version=9p2000.L,msize=500000

layered() { # tag, where
    mkdir -p "/upper/$1/over" "/upper/$1/work" "$2"
    mount -t 9p -o "$options,ro,cache=loose" "$1" "/lower/$1" &&
        mount -t overlay -o "lowerdir=/lower/$1,upperdir=/upper/$1/over,workdir=/upper/$1/work" overlay "$2"
}

live() { # tag, where
    mkdir -p "$2"
    mount -t 9p -o "$options,ro,cache=none" "$1" "$2"
}

case " $(cat /proc/cmdline) " in *" live "*) how=live ;; *) how=layered ;; esac
layered root /new && "$how" tree /new/mnt/tree &&
    mkdir -p /new/mnt/out && mount -t 9p -o "$options,cache=none" out /new/mnt/out || exec sh
for folder in proc sys dev; do
    mount --move "/$folder" "/new/$folder"
done
exec switch_root /new /bin/bash /mnt/tree/tests/xen/inside/dom0.sh
