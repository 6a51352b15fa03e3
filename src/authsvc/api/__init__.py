"""HTTP: what comes in, what goes out, nothing in between."""
