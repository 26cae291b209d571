"""The app as a hosted Space. The Space's README begins with this header:

---
title: gradcam-kit
emoji: 🔍
colorFrom: indigo
colorTo: yellow
sdk: gradio
sdk_version: 6.31.0
app_file: app.py
license: apache-2.0
---

On your own computer, `gradcam-kit app` shows the same page, on the loopback address alone.
"""

import os

from gradcam_kit.app import AppModel, build_page, launch_options
from gradcam_kit.app.serving import default_model
from gradcam_kit.jobs import ModelRequest

demo = build_page(AppModel.load(ModelRequest(os.environ.get("GRADCAM_KIT_MODEL") or default_model(print))))

if __name__ == "__main__":
    demo.launch(**launch_options())
