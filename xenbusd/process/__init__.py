"""A process and its system: the event loop, systemd, descriptors, sockets, child programs."""
