"""The version of the package, which is also that of its numerics."""

#: Raised with every change of a bit of any result; CHANGELOG.md lists the change under it.
#: Checkpoints and runs keep it, and resuming or comparing across versions says so.
VERSION = "0.2.0"
