"""Norms that are not torch's own classes: which function of torch a subclass calls, and which norm
a module of no torch class computes, found out on a small instance of it."""
