# Carries out commands from dom0 on its console: a line is a number and a command, and is answered, after the output of
# the command, by "= number status". It loads no module by itself.
await() { # disk: until it is there, and has a size
    for tenth in $(seq 200); do
        [ -b "/dev/$1" ] && [ "$(cat "/sys/block/$1/size")" != 0 ] && return
        sleep 0.1
    done
    false
}

await_gone() { # disk
    for tenth in $(seq 200); do
        [ -e "/sys/block/$1" ] || return 0
        sleep 0.1
    done
    false
}

busy() { # file or disk, MiB: write it over and over again, in the background
    rm -f /tmp/idle
    (while [ ! -e /tmp/idle ]; do dd if=/dev/urandom of="$1" bs=1M count="$2" conv=fsync 2>/dev/null || exit; done) &
    busy=$!
}

idle() { # until `busy` has done its round; fails if that has failed
    touch /tmp/idle
    wait "$busy"
}

[ -x /bin/mkfs.ext4 ] || ln -s /sbin/mke2fs /bin/mkfs.ext4
mkdir -p /disk
stty -echo
echo "told: ready"
while read -r number command; do
    eval "$command" </dev/null
    printf '\n= %s %s\n' "$number" "$?"
done
