"""Statements, and nothing else: rows in, frozen records out, each bound to one tenant."""
