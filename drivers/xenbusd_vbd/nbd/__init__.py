"""NBD: the wire, both ends of a connection, and the kernel's devices. Knows neither blkif nor images."""
