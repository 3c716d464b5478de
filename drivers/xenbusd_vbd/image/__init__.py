"""Images: files, devices, and the servers of others, each behind one interface."""
