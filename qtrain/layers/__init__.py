"""torch's layers with another forward."""
