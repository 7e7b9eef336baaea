"""Exact products of integers of up to 17 bits, taken apart into digits that fp16 holds."""
