"""Load against a real gateway: callers, a simulated fleet of units, and the kernels' benchmark."""
