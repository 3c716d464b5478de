# Writes rounds of data to xvda, each on stable storage before it is reported, and reads them all again in the end.
load xen-blkfront
sums=
for round in $(seq 0 39); do
    head -c 1048576 /dev/urandom >/tmp/round
    sum=$(sha256sum </tmp/round)
    dd if=/tmp/round of=/dev/xvda bs=1M seek="$round" conv=fsync,notrunc 2>/dev/null || echo "round $round failed"
    sums="$sums $round:${sum%% *}"
    echo "round $round"
done
echo 3 >/proc/sys/vm/drop_caches
for each in $sums; do
    sum=$(dd if=/dev/xvda bs=1M skip="${each%%:*}" count=1 2>/dev/null | sha256sum)
    [ "${sum%% *}" = "${each#*:}" ] || echo "round ${each%%:*} reads otherwise"
done
dmesg | grep -iE 'error|fail.*xvd'
sha256sum /dev/xvda
