"""TPMs: one software TPM for each device at the backend, a TPM for this domain's kernel or programs at the frontend."""
