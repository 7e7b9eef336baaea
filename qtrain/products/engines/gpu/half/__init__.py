"""Products with a floating-point operand that bf16 or fp16 holds."""
