"""The frontend's data path: a disk, made of the rings of a backend."""
