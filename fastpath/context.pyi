from typing import Any

Principal: Any
RequestContext: Any
"""Typed in gateway.context, which is where it is imported from."""
