"""Routes, the Falcon router over the compiled table, kind to resource."""
