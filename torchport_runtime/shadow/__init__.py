"""Shadow testing: runs sampled traffic again on a second backend, and compares."""
