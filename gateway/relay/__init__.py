"""Type B: controllers answered by a unit over the WebSocket it dialled."""
