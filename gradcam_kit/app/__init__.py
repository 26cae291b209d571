"""The app: choose a picture, class, methods and layer in the browser, and see the maps side by side.

`state.py`, `views.py` and `recipes.py` turn a picture and choices into maps, tables and code, without using Gradio.
`page.py` shows the results with Gradio, and `serving.py` serves the page on a port.
"""

from gradcam_kit.app.launching import launch_options
from gradcam_kit.app.page import build_page
from gradcam_kit.app.serving import serve
from gradcam_kit.app.views import AppModel

__all__ = ["AppModel", "build_page", "launch_options", "serve"]
