"""Models and data that are not of this package: by reference, or as values of Python."""
