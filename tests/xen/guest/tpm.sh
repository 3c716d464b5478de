# A TPM 2.0 by xenbusd's agent in this guest: the kernel's own /dev/tpm0 and /dev/tpmrm0, used by Debian's tpm2-tools.
load xen-evtchn xen-gntdev xen-gntalloc tpm_vtpm_proxy
export PYTHONPATH=/mnt/tree:/mnt/tree/drivers:/mnt/tree/meta:/opt/site PYTHONDONTWRITEBYTECODE=1
(cd / && exec python3 -m xenbusd agent --host xen --class vtpm --log-format json --log-level debug) &
agent=$!
for second in $(seq 120); do
    [ -c /dev/tpmrm0 ] && break
    sleep 1
done
export TPM2TOOLS_TCTI=device:/dev/tpmrm0
cd /tmp && echo text >text && use() {
    tpm2 getcap properties-fixed | grep -A 2 TPM2_PT_FAMILY_INDICATOR &&
        tpm2 getrandom --hex 8 && echo &&
        tpm2 pcrextend 10:sha256=1111111111111111111111111111111111111111111111111111111111111111 &&
        tpm2 pcrread sha256:10 &&
        tpm2 createprimary -Q -c primary &&
        tpm2 create -Q -C primary -u key.pub -r key.priv &&
        tpm2 load -Q -C primary -u key.pub -r key.priv -c key &&
        tpm2 sign -Q -c key -g sha256 -o signature text &&
        tpm2 verifysignature -Q -c key -g sha256 -m text -s signature && echo "the signature is good"
}
use
result=$?
kill $agent
wait $agent
echo "agent ended with $?"
[ ! -e /dev/tpm0 ] && echo "/dev/tpm0 is gone"
(exit $result)
