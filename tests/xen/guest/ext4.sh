# Puts a file system on a disk, a file into it, and prints sums that dom0 compares with its own.
# The disk is xvda by Linux's own blkfront, unless another was made first.
disk=${disk:-/dev/xvda}
[ "$disk" != /dev/xvda ] || load xen-blkfront
load crc32c_generic ext4
for second in $(seq 60); do
    [ -b "$disk" ] && [ "$(cat "/sys/block/${disk#/dev/}/size")" != 0 ] && break
    sleep 1
done
mkdir -p /disk
ext4() {
    mkfs.ext4 -q "$disk" && mount -t ext4 "$disk" /disk || return
    head -c 8388608 /dev/urandom >/disk/file && sync && sha256sum /disk/file
    umount /disk && e2fsck -fn "$disk" && sha256sum "$disk"
}
[ -x /bin/mkfs.ext4 ] || ln -s /sbin/mke2fs /bin/mkfs.ext4
ext4
