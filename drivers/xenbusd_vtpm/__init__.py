"""TPMs: the backend runs a software TPM for each device; the frontend gives it to its domain's kernel or programs."""
