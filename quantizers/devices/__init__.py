"""What a device changes: which code computes, when memory may be read, Python numbers."""
