"""The configuration document: model, check, compile to a snapshot, swap."""
