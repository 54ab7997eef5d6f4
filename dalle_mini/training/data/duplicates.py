"""Pictures that came before, the same or nearly so.

Contract: `Duplicates.reason` is asked about one sample after another and remembers them. A picture whose pixels are
those of an earlier one may come back with another caption, which is how data sets write several captions of a
picture; a copy in another size or compression may not, because a model learns by heart what it sees often.

Copies are found by a perceptual hash: the signs of the differences between neighbours in a small grey thumbnail, 64
bits of which a copy changes a few. Two hashes that differ in up to 3 bits agree in at least one quarter, by which they
are looked up; small thumbnails in colour then decide, because plain pictures of different things have equal hashes.
"""

import hashlib
from collections import defaultdict
from typing import ClassVar

import numpy as np
from PIL import Image

from dalle_mini.training.data.rows import Sample

SIDE = 8  # pixels of a thumbnail
STEP = 4  # of 255; a smaller difference counts as none, so that compression does not change a plain ground's hash
# Plain pictures can share a quarter by the million. Copies mostly follow soon, so a look-up stops after this many.
LOOK_BACK = 2000


class Duplicates:
    REASONS: ClassVar = {
        "duplicate": "The same pixels have come with the same caption.",
        "near_duplicate": "A picture has come whose thumbnail differs by at most max_thumbnail_difference anywhere.",
    }

    def __init__(self, max_difference: int) -> None:
        self._max_difference = max_difference
        self._captions: dict[bytes, set[str]] = {}  # by the hash of the pixels
        self._thumbnails: defaultdict[tuple[int, bytes], list[np.ndarray]] = defaultdict(list)

    def reason(self, sample: Sample) -> str:
        """One of REASONS, or "" for a picture that is new or has a new caption."""
        pixels = hashlib.sha256(repr(sample.image.size).encode() + sample.image.tobytes()).digest()
        caption = sample.caption.lower()
        if pixels in self._captions:
            if caption in self._captions[pixels]:
                return "duplicate"
            self._captions[pixels].add(caption)
            return ""
        thumbnail = np.asarray(sample.image.resize((SIDE, SIDE), Image.Resampling.BOX))  # [8, 8, 3]
        quarters = _quarters(thumbnail)
        for quarter in quarters:
            seen = self._thumbnails[quarter][-LOOK_BACK:]
            if seen and _differences(np.stack(seen), thumbnail).min() <= self._max_difference:
                return "near_duplicate"
        self._captions[pixels] = {caption}
        for quarter in quarters:
            self._thumbnails[quarter].append(thumbnail)
        return ""


def _differences(thumbnails: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    """uint8 [B, 8, 8, 3] and [8, 8, 3] -> the largest difference anywhere, [B]."""
    return np.abs(thumbnails.astype(np.int16) - thumbnail[None]).max(axis=(1, 2, 3))


def _quarters(thumbnail: np.ndarray) -> list[tuple[int, bytes]]:
    """The 64 bits as four keys: each quarter with its number."""
    grey = thumbnail.mean(-1).ravel()
    bits = np.packbits(np.roll(grey, -1) - grey > STEP).tobytes()
    return [(place, bits[place : place + 2]) for place in range(0, 8, 2)]
