# The frontends in user space: xenbusd's agent in this guest. An echo, then its disk, which the agent gives to the
# kernel's nbd at /dev/nbd0, with the ext4 job.
load xen-evtchn xen-gntdev xen-gntalloc nbd
export PYTHONPATH=/mnt/tree:/mnt/tree/drivers:/mnt/tree/meta:/opt/site PYTHONDONTWRITEBYTECODE=1
(cd / && exec python3 -m xenbusd agent --host xen --log-format json --log-level debug) &
agent=$!
for second in $(seq 120); do
    [ -S /run/xenbusd/echo-0.sock ] && break
    sleep 1
done
python3 - <<'P'
import socket
with socket.socket(socket.AF_UNIX) as program:
    program.connect("/run/xenbusd/echo-0.sock")
    program.sendall(b"hello from a guest\n")
    print("echo:", program.makefile("rb").readline().decode().strip())
P
disk=/dev/nbd0
. /jobs/ext4.sh
result=$?
kill $agent
wait $agent
echo "agent ended with $?"
(exit $result)
