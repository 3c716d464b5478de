# Keeps xvda busy and tells which disks come and go, until it is destroyed.
load xen-blkfront
(while :; do dd if=/dev/urandom of=/dev/xvda bs=1M count=16 conv=fsync 2>/dev/null; done) &
before=
while :; do
    now=$(ls /sys/block | grep xvd | tr '\n' ' ')
    [ "$now" = "$before" ] || echo "disks: $now."
    before=$now
    sleep 0.2
done
