"""What is wrong, and which part is to blame."""
