"""What a model's products would cost in hardware."""
