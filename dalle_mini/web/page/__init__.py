"""The parts of the page, which app.py puts together. They have Gradio from here, where it is set up.

The page asks no other host for anything, and holds no default of a setting.
"""

import os
import sys

os.environ |= {  # gradio reads them when it is imported, and when there is a queue
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # it would keep 10000 and make statistics of them after each one:
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",  # /metrics has ours
}
import gradio as gr

# Gradio looks for it before and after every event and, where it is not installed, in every folder of the path.
sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]

__all__ = ["gr"]
