"""What any process of ours needs of its system: the event loop, systemd, descriptors, sockets, child programs."""
