"""Shapes and types in all signatures of the package are checked at run time in the tests."""

import os

import torch
from jaxtyping import install_import_hook

install_import_hook("gradcam_kit", "beartype.beartype")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores; more threads than cores slow all of them down
