"""The parts of the page, which app.py puts together. They have Gradio from here, where it is set up.

The page asks no other host for anything, and holds no default of a setting.
"""

import os
import sys
import tempfile

from dalle_mini.environment import without_proxies

os.environ |= {  # gradio reads them when it is imported, and when there is a queue
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # it would keep 10000 and make statistics of them after each one:
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",  # /metrics has ours
}
try:
    tempfile.gettempdir()  # Gradio asks for it at once
except FileNotFoundError as error:
    rule = "TMPDIR must be a folder that can be written"
    raise SystemExit(f"{rule}, got {os.environ.get('TMPDIR')!r} ({error.strerror})") from None
with without_proxies():  # it makes clients that it never uses here, and fails where a proxy is not to its taste
    import gradio as gr

# Gradio looks for it before and after every event and, where it is not installed, in every folder of the path.
sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]

__all__ = ["gr"]
