"""Where the lines of a run go beside its own files, while it runs."""
