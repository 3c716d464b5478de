# The frontends in user space: xenbusd's agent in this guest. An echo, then its disk at /dev/nbd0 with the ext4 job.
load xen-evtchn xen-gntdev xen-gntalloc nbd
export PYTHONPATH=/mnt/tree:/mnt/tree/drivers:/mnt/tree/meta:/opt/site PYTHONDONTWRITEBYTECODE=1
echo "agent starts"
(cd / && exec python3 -m xenbusd agent --host xen --log-format console --log-level debug) &
agent=$!
for second in $(seq 120); do
    [ -S /run/xenbusd/echo-0.sock ] && [ -S /run/xenbusd/vbd-51712.sock ] && break
    sleep 1
done
ls -l /run/xenbusd
python3 - <<'P'
import socket
with socket.socket(socket.AF_UNIX) as program:
    program.connect("/run/xenbusd/echo-0.sock")
    program.sendall(b"hello from a guest\n")
    print("echo:", program.makefile("rb").readline().decode().strip())
P
nbd-client -unix /run/xenbusd/vbd-51712.sock /dev/nbd0 -b 4096
disk=/dev/nbd0
. /jobs/ext4.sh
result=$?
nbd-client -d /dev/nbd0
kill $agent
wait $agent
echo "agent ended with $?"
(exit $result)
