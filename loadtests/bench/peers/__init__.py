"""How each peer is installed, configured with the bench's policy, and started."""
