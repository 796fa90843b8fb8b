"""`make ledger`: what callers were answered, compared with the audit trail, after everything was done to lose it."""
