"""What this machine computes with, and what a model's products would cost in hardware."""
