"""Caregate side by side with its peers: same tokens, same policy, interleaved, CPU time per request."""
