"""What computes an exact sum, and the choice among them."""
