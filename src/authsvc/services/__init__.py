"""What the service does, inside a transaction that the entry point opened."""
