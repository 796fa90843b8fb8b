"""HTTP/1.1 as the worker speaks it: connections, bodies, responses and their deadlines."""
