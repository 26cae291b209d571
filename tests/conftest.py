"""Shapes and types in all signatures of the package are checked at run time in the tests."""

from jaxtyping import install_import_hook

install_import_hook("gradcam_kit", "beartype.beartype")
