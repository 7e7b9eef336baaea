"""Exact products of int8 operands."""
