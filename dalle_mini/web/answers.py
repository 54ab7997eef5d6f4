"""The files of answers, which live as long as somebody may look at them, in a folder of this process.

Contract: every session keeps its newest answer, the latest `SESSIONS` of them; what is displaced is deleted `FETCHING`
seconds later, by the next answer, since somebody may be fetching it. So the folder does not grow without end.

The disk may fail, or be emptied by others, at any time: the folder is made again, and whoever asks meanwhile is told
in a sentence (`StorageError`). The folder is locked while its process lives, so that the next start can tell and
delete what a killed one left.
"""

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle_mini.gallery import Gallery
from dalle_mini.serving.refusals import RefusedError

try:
    import fcntl
except ImportError:  # Windows: what a killed process left stays
    fcntl = None  # type: ignore[assignment]

SESSIONS = 1000
FETCHING = 30.0
PREFIX = "dalle-mini-page-"
LEAST = 1 << 16  # bytes that must be free for an answer, before any was written


class StorageError(RefusedError):
    """There is no place for an answer's files; the message names the folder and the reason."""


class Answers:
    """Any thread may save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.works = True  # as far as the last try knows
        self._lock = threading.Lock()
        self._newest: OrderedDict[str, Path] = OrderedDict()  # of every session
        self._displaced: deque[tuple[float, Path]] = deque()  # since when
        self._largest = LEAST  # bytes of an answer

    def check(self) -> None:
        """Make the folder where it is gone, and write and delete as much as an answer has. Raises StorageError."""
        probe = self.folder / f"probe-{secrets.token_urlsafe(8)}"
        with self._told():
            try:
                make_locked(self.folder)
                probe.write_bytes(bytes(self._largest))
            finally:
                probe.unlink(missing_ok=True)

    def save(self, gallery: Gallery, session: str | None) -> list[Path]:
        """The gallery as PNG files, best first, in a folder that nobody can guess. Raises StorageError."""
        folder = self.folder / secrets.token_urlsafe(16)
        stem = re.sub(r"\W+", "-", gallery.prompt)[:40].strip("-") or "picture"
        paths = [folder / f"{stem}-seed{c.seed}-{rank:02}.png" for rank, c in enumerate(gallery, 1)]
        with self._told():
            try:
                make_locked(self.folder)
                folder.mkdir(mode=0o700)
                for path, candidate in zip(paths, gallery, strict=True):
                    candidate.save_png(path)
                self._largest = max(self._largest, sum(path.stat().st_size for path in paths))
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        self._keep(session or folder.name, folder)
        return paths

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.works = False
            reason = error.strerror or type(error).__name__
            rule = "the server's folder for pictures (TMPDIR) must have room and be writable"
            raise StorageError(f"{rule}, got {str(self.folder)!r} ({reason}): please try again later") from error
        self.works = True

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


@contextmanager
def kept() -> Iterator[Answers]:
    """Answers in a folder of their own, in GRADIO_TEMP_DIR or the system's, which is deleted at the end."""
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()).expanduser().resolve()
    delete_what_was_left(parent)
    answers = Answers(parent / f"{PREFIX}{secrets.token_hex(8)}")
    try:
        answers.check()
        yield answers
    finally:
        # Who was drawn for at the last moment may still be saving.
        shutil.rmtree(answers.folder, ignore_errors=True)


def delete_what_was_left(parent: Path) -> None:
    """The folders of processes that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        if lock := _lock(folder):
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def make_locked(folder: Path) -> None:
    """Does nothing where the folder exists. The lock ends with the process."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _lock(folder)


def _lock(folder: Path) -> int | None:
    """The file descriptor that holds the lock, or None where another process has it."""
    if fcntl is None:
        return None
    lock = -1
    try:
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if lock >= 0:
            os.close(lock)
        return None
    return lock
