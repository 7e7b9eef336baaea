"""The error that every loader raises."""


class DataError(ValueError):
    """Data that is missing or damaged: what, where it was looked for, how to get it."""


def reason(error: Exception) -> str:
    """Why a file could not be read, in words and without its name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
