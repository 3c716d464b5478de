"""vbd: a block device between two domains; the backend serves an image, the frontend offers the disk over NBD.

Decision: D44.
"""
