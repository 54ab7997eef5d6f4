"""The files of answers, which live as long as somebody may look at them.

Contract: every session keeps its newest answer, the latest `SESSIONS` of them; what is displaced is deleted `FETCHING`
seconds later, by the next answer, since somebody may be fetching it. So the folder does not grow without end.
"""

import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path

from dalle_mini.gallery import Gallery

SESSIONS = 1000
FETCHING = 30.0


class Answers:
    """Any thread may save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._newest: OrderedDict[str, Path] = OrderedDict()  # of every session
        self._displaced: deque[tuple[float, Path]] = deque()  # since when

    def save(self, gallery: Gallery, session: str | None) -> list[Path]:
        """The gallery as PNG files, best first, in a folder that nobody can guess."""
        folder = self.folder / secrets.token_urlsafe(16)
        folder.mkdir()
        stem = re.sub(r"\W+", "-", gallery.prompt)[:40].strip("-") or "picture"
        paths = [folder / f"{stem}-seed{c.seed}-{rank:02}.png" for rank, c in enumerate(gallery, 1)]
        for path, candidate in zip(paths, gallery, strict=True):
            candidate.save_png(path)
        self._keep(session or folder.name, folder)
        return paths

    def _keep(self, session: str, folder: Path) -> None:
        now = time.monotonic()
        with self._lock:
            if before := self._newest.pop(session, None):
                self._displaced.append((now, before))
            self._newest[session] = folder
            if len(self._newest) > SESSIONS:
                self._displaced.append((now, self._newest.popitem(last=False)[1]))
            due = []
            while self._displaced and self._displaced[0][0] < now - FETCHING:
                due.append(self._displaced.popleft()[1])
        for old in due:
            shutil.rmtree(old, ignore_errors=True)
