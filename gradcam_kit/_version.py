"""The version of the package; a file of its own, so that run manifests can read it without a circular import."""

__version__ = "0.1.0"
