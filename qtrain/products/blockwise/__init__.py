"""Products whose scales vary along the sum, in blocks."""
