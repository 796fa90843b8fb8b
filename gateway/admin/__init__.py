"""The Admin API: operations that the operations listener serves and the command line runs."""
