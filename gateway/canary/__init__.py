"""Planted texts that stand for what is personal: sent through the gateway, then looked for where they must not be."""
