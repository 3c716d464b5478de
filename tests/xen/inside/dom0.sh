#!/bin/bash
# dom0 from here on: what Debian's /etc/init.d/xen does, and no more; then a shell, if /mnt/out/shell is there, or the
# tests that /mnt/out/items names.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
exec </dev/null >/mnt/out/dom0.log 2>&1
for folder in run tmp dev/shm; do
    mkdir -p "/$folder"
    mount -t tmpfs tmpfs "/$folder"
done
mkdir -p /dev/pts /run/lock /run/xen /run/xenstored /var/log/xen /var/lib/xen /mnt/out/consoles
mount -t devpts devpts /dev/pts
mount -t xenfs xenfs /proc/xen
hostname dom0
ip link set lo up
for module in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd; do
    modprobe "$module"
done
# Linux's own disk backend is kept away as an administrator would.
cp /mnt/tree/systemd/xenbusd.modprobe.conf /etc/modprobe.d/xenbusd.conf
install -m 755 /mnt/tree/hotplug/block-xenbusd /etc/xen/scripts/

bin=/usr/lib/xen-4.17/bin
"$bin/$(cat /mnt/out/store)"
"$bin/xen-init-dom0"
"$bin/xenconsoled" --log=guest --log-dir=/mnt/out/consoles

export PYTHONPATH=/mnt/tree:/mnt/tree/drivers:/mnt/tree/meta:/mnt/out/meta:/opt/site PYTHONDONTWRITEBYTECODE=1
run_tests() {
    export XENBUSD_XEN=inside XENBUSD_ALL="$(cat /mnt/out/all)"
    cd /mnt/tree || exit
    mapfile -t items </mnt/out/items
    # Images are in memory, and those of all tests together would fill it: so none of a test that passed is kept.
    # pyxs leaves /proc/xen/capabilities open when it is imported; it exists only here, so only here is it seen.
    timeout --kill-after 10 "$(cat /mnt/out/deadline_s)" \
        python3 -m pytest -p no:cacheprovider -o tmp_path_retention_policy=failed --durations=30 -vv -W 'ignore:unclosed file:ResourceWarning:pyxs.client' "${items[@]}" \
        >/mnt/out/pytest.log 2>&1
    echo "pytest ended with $?"
}

if [ -e /mnt/out/shell ]; then
    . /mnt/tree/tests/xen/inside/shell.sh
else
    run_tests
fi

xl list
xenstore-ls -fp >/mnt/out/store.txt
dmesg >/mnt/out/kernel.log
cp /var/log/xen/* /mnt/out/
sync
echo o >/proc/sysrq-trigger
sleep 60
