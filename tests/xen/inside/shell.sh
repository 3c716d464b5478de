# Sourced by dom0.sh: a developer's root shell on the console, until it ends.
write_command() { # name, module
    printf '#!/bin/sh\nexec python3 -c "import sys; from %s import main; sys.argv[0] = \\"%s\\"; main()" "$@"\n' "$2" "$1" \
        >"/usr/local/bin/$1"
    chmod +x "/usr/local/bin/$1"
}
write_command xenbusd xenbusd.cli.run
write_command xenbusctl xenbusd.cli.ctl

# A guest to begin with. Its job does what is typed on its console.
cp /mnt/out/ramdisks/base.cpio /tmp/guest.cpio
truncate -s 128M /tmp/disk.img
cat >/tmp/guest.cfg <<G
name = "guest"
kernel = "$(echo /boot/vmlinuz-*)"
ramdisk = "/tmp/guest.cpio"
memory = 512
vcpus = 1
extra = "console=hvc0 quiet mitigations=off job=shell"
disk = ["script=block-xenbusd,vdev=xvda,access=rw,target=/tmp/disk.img"]
G
cat >/tmp/motd <<M

dom0 of Xen $(cat /sys/hypervisor/version/major)$(cat /sys/hypervisor/version/minor 2>/dev/null | sed 's/^/./'), $(cat /mnt/out/store). The work tree is /mnt/tree, read-only and live. To begin with:
  xenbusd serve &                    the backends; then xenbusctl list, show, timeline
  xl create -c /tmp/guest.cfg        a guest with a disk of ours, and its console (Ctrl-] leaves it)
  xl console guest, xl destroy guest, ls /mnt/out/consoles
exit or Ctrl-D switches the machine off.

M
cat >/tmp/bashrc <<'R'
PS1='dom0:\w# '
cat /tmp/motd
R
read -r rows columns TERM </mnt/out/shell
export TERM
exec 9<>/dev/hvc0
stty sane rows "$rows" columns "$columns" <&9
cd /tmp || exit
echo "shell begins"
setsid --ctty --wait bash --rcfile /tmp/bashrc -i <&9 >&9 2>&9 9>&-
echo "shell ended with $?"
