"""HTTP/2 as the worker speaks it where it is switched on: one connection, many streams, the rules of HTTP/1.1."""
