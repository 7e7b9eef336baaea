"""The compiled passes of norms."""
