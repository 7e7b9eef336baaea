"""Products whose sums an accumulator computes, term by term."""
