"""Common ways of using granted pages: to keep them mapped, to copy them in batches, to share a pool of them."""
