from typing import Any

RequestContext: Any
"""Typed in gateway.context, which is where it is imported from."""
