"""All SQL, and the embedded PostgreSQL."""
