"""What drivers do with granted pages: keep them mapped, copy them in batches, share a pool of them."""
