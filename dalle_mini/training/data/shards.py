"""Shards: Parquet files of captions and codes, which text-to-code models train on.

Contract: a folder of shards, which `encode` writes, is of one VQGAN and holds

    00000.parquet ...   key, caption, codes: uint16 [image_length], row by row; about 600 bytes a row
    statistics.json     written last: counts, skipped keys by reason, use of the codebook, the VQGAN
    sheet.png           pictures decoded from the codes, to look at before training
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Bool, UInt16

from dalle_mini.model_names import EMBEDDED, PUBLISHED_VQGAN, SHELF, model_of
from dalle_mini.training.optional_packages import optional
from vqgan import Codec
from vqgan.model import written_dim

STATISTICS = "statistics.json"
HELD_BACK = 0.02  # of the rows: what the validation loss and the sample sheets of training are made of
MOST_CAPTIONS = 20  # of a picture; a key of more rows stands for something else
# The entry of a shard's metadata: JSON of "vqgan", "report", and hashes of the rows: "source" of keys and captions,
# "pictures" of the files.
FACTS = b"dalle_mini"


class Encoded(NamedTuple):
    """The content of shards; `vqgan` is the `fingerprint` of the VQGAN that all of them come from."""

    captions: list[str]
    codes: UInt16[np.ndarray, "M T"]
    vqgan: dict[str, Any]
    keys: list[str]


def vqgan_location(name: str) -> str | Path:
    """For `vqgan.load`: the VQGAN of a preset or of a model's folder; any other name is a location itself."""
    if name in SHELF:
        return PUBLISHED_VQGAN
    folder = EMBEDDED if name == "emoji" else model_of(Path(name))
    return folder / "vqgan" if (folder / "vqgan").is_dir() else name


def fingerprint(vqgan: Codec) -> dict[str, Any]:
    """Tells VQGANs with other codes apart, whatever the layout of their files.

    The SHA-256 is of the float32 parameters that decide the codes: the decoder may be trained further, and with it what
    codes have for the decoder alone.
    """
    digest = hashlib.sha256()
    own = written_dim(vqgan.params) if "quant_conv" in vqgan.params else None
    for path, leaf in sorted(traverse_util.flatten_dict(vqgan.params, sep="/").items()):
        if not path.startswith(("decoder/", "post_quant_conv/")):
            leaf = leaf[..., :own] if path.startswith(("quant_conv/", "quantize/")) else leaf
            digest.update(f"{path} {leaf.shape}\n".encode() + np.asarray(leaf).tobytes())
    return {"sha256": digest.hexdigest(), "n_embed": vqgan.codebook_size, "resolution": vqgan.resolution}


def read_shard(path: Path) -> tuple[list[str], UInt16[np.ndarray, "M T"], dict[str, Any], list[str]]:
    """Captions, codes, facts and keys of one shard. Raises ValueError if it is damaged or none of ours."""
    pq = optional("pyarrow.parquet", "to read shards")
    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[FACTS])
        codes = table["codes"].combine_chunks()
        grids = codes.flatten().to_numpy().reshape(len(codes), codes.type.list_size)
        return table["caption"].to_pylist(), grids, facts, table["key"].to_pylist()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a whole shard that encode wrote: {type(error).__name__}: {error}") from None


def read_codes(folders: Sequence[Path]) -> Encoded:
    """All captions and codes of one or more folders that `encode` has finished.

    Raises ValueError that names the folder or the shard if one is unfinished, incomplete, damaged or of another VQGAN.
    """
    captions: list[str] = []
    keys: list[str] = []
    codes: list[np.ndarray] = []
    identity: dict[str, Any] = {}
    for folder in folders:
        try:
            expected = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))["kept"]
        except (OSError, ValueError, KeyError):
            raise ValueError(f"{folder} must hold the shards and {STATISTICS} of a finished encode") from None
        before = len(captions)
        for path in sorted(folder.glob("*.parquet")):
            some, grids, facts, names = read_shard(path)
            identity = identity or facts["vqgan"]
            if facts["vqgan"] != identity:
                raise ValueError(
                    f"{path} must be of the VQGAN {named(identity)} as the others, got {named(facts['vqgan'])}"
                )
            captions += some
            keys += names
            codes.append(grids)
        if len(captions) - before != expected:
            raise ValueError(
                f"{folder} must hold {expected} samples, as its {STATISTICS} says, got {len(captions) - before}"
            )
    return Encoded(captions, np.concatenate(codes), identity, keys)


def named(identity: dict[str, Any]) -> str:
    return f"{identity['sha256'][:12]} ({identity['n_embed']} codes, {identity['resolution']} px)"


def held_back(keys: Sequence[str]) -> Bool[np.ndarray, " M"]:
    """What training holds back, about HELD_BACK of the rows, never all, and never none.

    A key's hash decides, so that more data moves nothing, and all captions of a picture go one way. Rows of a key that
    more than MOST_CAPTIONS have, which is no picture's, are held back singly. Raises ValueError for a single picture.
    """
    rows, times = Counter(keys), Counter[str]()
    hashes = []
    for key in keys:
        single = f"{key}#{times[key]}" if rows[key] > MOST_CAPTIONS else key
        hashes.append(int.from_bytes(hashlib.sha256(single.encode(errors="backslashreplace")).digest()[:8]))
        times[key] += 1
    ordered = sorted(set(hashes))
    if len(ordered) < 2:
        raise ValueError(f"data must hold 2 or more pictures, one of them to look at, got {len(ordered)}")
    limit = min(max(int(HELD_BACK * 2**64), ordered[0]), ordered[-2])
    return np.array([value <= limit for value in hashes])
