"""Quantizers whose scales are trained with the network, by gradients of their own."""
