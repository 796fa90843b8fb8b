"""What runs at a unit: dials out, relays to the local HTTP service."""
