"""Updates: weights, gradients and the optimizer's state in low precision."""
