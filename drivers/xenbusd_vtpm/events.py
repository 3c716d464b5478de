"""The events of the log that this driver writes, with one sentence on when it does. Pure."""

EVENTS = {
    "tpm.lost": "The swtpm has ended or does not answer: commands get the TPM's failure response until a new one runs.",
    "tpm.started": "A swtpm runs for a guest, with the state that belongs to the guest's UUID.",
    "tpm.unanswered": "A command that was under way when the daemon ended gets the TPM's failure response.",
    "vtpmx.attached": "The TPM is a device of this guest's kernel.",
    "vtpmx.failed": "The kernel's TPM proxy cannot be used; the TPM is served on its socket instead.",
}
