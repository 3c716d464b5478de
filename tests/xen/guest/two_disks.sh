# The ext4 job on two disks, one after the other: xvda, then xvdb.
for disk in /dev/xvda /dev/xvdb; do
    echo "next: $disk"
    . /jobs/ext4.sh || break
done
