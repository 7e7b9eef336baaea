"""The error that every loader raises."""


class DataError(ValueError):
    """Data that is missing or damaged: what, where it was looked for, how to get it."""
