"""The version of the package, in a separate file so that run manifests can read it without a circular import."""

__version__ = "0.1.0"
