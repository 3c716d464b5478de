"""The process and its environment: the event loop, systemd, descriptors, sockets, child programs."""
