"""The three products of a layer: forward, grad_input, grad_weight."""
