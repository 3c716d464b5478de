"""Xen's split drivers in user space: both ends, on a real Xen host or a simulated one."""
