"""`python -m gradcam_kit`: the command line."""

from gradcam_kit.cli import main

main()
