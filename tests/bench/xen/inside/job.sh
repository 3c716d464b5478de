# The guest of `make xen-bench`: does what dom0 says on its console, one order a line, and answers in lines that begin
# with "bench:". Written for busybox's sh.
load xen-blkfront
stty -echo
echo "bench: ready"
while read -r order disk arguments; do
    case $order in
    disks) echo "bench: disks" $(ls /sys/block | grep xvd) ;;
    fio)
        before=$(cat "/sys/block/$disk/stat")
        # shellcheck disable=SC2086  # a list of options
        fio --filename="/dev/$disk" $arguments --output-format=json --output=/tmp/report >/tmp/said 2>&1
        echo "bench: ended $?"
        echo "bench: stat" $before $(cat "/sys/block/$disk/stat")
        cat /tmp/said /tmp/report
        echo "bench: over"
        ;;
    *) echo "bench: no such order" ;;
    esac
done
