"""Pictures to codes, once: Parquet shards of captions and codes, which text-to-code models train on.

Contract: shard k covers the rows [k * shard_rows, (k + 1) * shard_rows) of a source and is a pure function of them and
of the VQGAN. It appears whole or not at all, so an encode that was stopped goes on with the first shard that is
missing, and ends with what an uninterrupted one ends with. A folder of shards holds

    00000.parquet ...   key, caption, codes: uint16 [image_length], row by row; about 600 bytes a row
    statistics.json     written last: counts, skipped keys by reason, use of the codebook, the VQGAN
    sheet.png           pictures decoded from the codes, to look at before training
"""

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Bool, UInt16
from PIL import Image, ImageOps
from tqdm import tqdm

from dalle_mini.gallery import contact_sheet
from dalle_mini.presets import EMBEDDED, PUBLISHED_VQGAN, SHELF, model_of
from dalle_mini.training.data.rows import Report, Sample, read_samples, write_json
from dalle_mini.training.data.sources import Row, open_source, optional
from vqgan import LARGEST_BUCKET, VQGAN

SHARD_ROWS = 1000  # at a second a picture, what a stopped encode loses is at most a quarter of an hour
STATISTICS, SHEET = "statistics.json", "sheet.png"
SHEET_PICTURES = 16
HELD_BACK = 0.02  # of the keys: what the validation loss and the sample sheets of training are made of
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


def fingerprint(vqgan: VQGAN) -> dict[str, Any]:
    """Tells VQGANs with other codes apart, whatever the layout of their files.

    The SHA-256 is of the float32 parameters that decide the codes: the decoder may be trained further.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(vqgan.params, sep="/").items()):
        if not path.startswith(("decoder/", "post_quant_conv/")):
            digest.update(f"{path} {leaf.shape}\n".encode() + np.asarray(leaf).tobytes())
    return {"sha256": digest.hexdigest(), "n_embed": vqgan.config.n_embed, "resolution": vqgan.config.resolution}


def encode(source: str | Path, vqgan: VQGAN, *, out: Path, shard_rows: int = SHARD_ROWS) -> Report:
    """Write the shards of `source` that `out` does not have yet, on all local devices, then statistics and a sheet.

    Pictures are cropped to a centred square of the VQGAN's resolution. Raises ValueError if there is none to encode,
    or if `out` holds shards of another VQGAN, of another source, or of this one before it changed.
    """
    if vqgan.config.n_embed > 2**16:
        raise ValueError(f"n_embed must be <= 65536, to be written in 16 bits, got {vqgan.config.n_embed}")
    rows, identity = open_source(source), fingerprint(vqgan)
    out.mkdir(parents=True, exist_ok=True)
    (out / STATISTICS).unlink(missing_ok=True)
    painters = [VQGAN(vqgan.config, jax.device_put(vqgan.params, device)) for device in jax.local_devices()]
    with ThreadPoolExecutor(len(painters)) as pool, tqdm(unit="row", mininterval=5) as bar:  # a thread for each device
        for number in count():
            path, part, report = out / f"{number:05d}.parquet", _Part(islice(rows, shard_rows), bar), Report()
            if path.exists():
                deque(part, maxlen=0)
                _check(path, identity, part)
            else:
                table = _encode_samples(read_samples(part, report), painters, pool)
                if part.rows:
                    _write(path, table, {"vqgan": identity, **part.hashes, "report": dataclasses.asdict(report)})
            if part.rows < shard_rows:
                break
    return _finish(out, vqgan)


class _Part:
    """The rows of one shard in passing, and hashes that tell whether they are those the shard was made of."""

    def __init__(self, rows: Iterable[Row], bar: tqdm) -> None:
        self.rows = 0
        self._source, self._bar = rows, bar
        self._texts, self._pictures = hashlib.sha256(), hashlib.sha256()

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            self.rows += 1
            self._bar.update()
            content = row.read()
            self._texts.update(repr((row.key, row.caption)).encode())
            self._pictures.update(hashlib.sha256(content or b"").digest())
            yield row if content is None else row._replace(file=content)  # which reads no file twice

    @property
    def hashes(self) -> dict[str, str]:
        return {"source": self._texts.hexdigest(), "pictures": self._pictures.hexdigest()}


def _encode_samples(samples: Iterator[Sample], painters: Sequence[VQGAN], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """The columns of a shard."""
    config = painters[0].config
    keys: list[str] = []
    captions: list[str] = []
    codes = [np.zeros((0, config.side**2), np.int32)]
    while batch := list(islice(samples, LARGEST_BUCKET * len(painters))):
        square = (config.resolution, config.resolution)
        pixels = np.stack([np.asarray(ImageOps.fit(sample.image, square)) for sample in batch])
        parts = [pixels[start : start + LARGEST_BUCKET] for start in range(0, len(pixels), LARGEST_BUCKET)]
        codes += pool.map(VQGAN.encode, painters, parts)
        keys += [sample.key for sample in batch]
        captions += [sample.caption for sample in batch]
    return {"key": keys, "caption": captions, "codes": np.concatenate(codes).astype(np.uint16)}


def _write(path: Path, columns: dict[str, Any], facts: dict[str, Any]) -> None:
    pa, pq = optional("pyarrow", "to write shards"), optional("pyarrow.parquet", "to write shards")
    codes = columns["codes"]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1])
    texts = {name: pa.array(columns[name], pa.string()) for name in ("key", "caption")}
    table = pa.table({**texts, "codes": lists})
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table.replace_schema_metadata({FACTS: json.dumps(facts)}), partial, compression="zstd")
    partial.replace(path)


def _read(path: Path) -> tuple[list[str], UInt16[np.ndarray, "M T"], dict[str, Any], list[str]]:
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


def _check(path: Path, identity: dict[str, Any], part: _Part) -> None:
    """A shard that is there already must be the one that would be written."""
    _, _, facts, _ = _read(path)
    if facts["vqgan"] != identity:
        raise ValueError(
            f"{path} must be of the VQGAN {_name(identity)}, got {_name(facts['vqgan'])}: use a new folder"
        )
    hashes = part.hashes
    if facts["source"] != hashes["source"]:
        raise ValueError(f"{path} must be of the same rows of the same source, got others: use a new folder")
    if facts.get("pictures", hashes["pictures"]) != hashes["pictures"]:  # older shards do not say
        raise ValueError(f"{path} must be of the same pictures as the source has, got others: use a new folder")


def _name(identity: dict[str, Any]) -> str:
    return f"{identity['sha256'][:12]} ({identity['n_embed']} codes, {identity['resolution']} px)"


def _finish(out: Path, vqgan: VQGAN) -> Report:
    report, uses, words = Report(), np.zeros(vqgan.config.n_embed, np.int64), 0
    some: list[np.ndarray] = []
    shards = sorted(out.glob("*.parquet"))
    for path in shards:
        captions, codes, facts, _ = _read(path)
        report.add(Report(**facts["report"]))
        uses += np.bincount(codes.ravel(), minlength=len(uses))
        words += sum(len(caption.split()) for caption in captions)
        # Evenly from all shards, and not many more than are shown.
        some += list(codes[:: max(1, len(codes) * len(shards) // SHEET_PICTURES)])
    if not report.kept:
        raise ValueError(f"source must hold pictures with captions, got {report.summary()}")
    places = np.linspace(0, len(some) - 1, min(len(some), SHEET_PICTURES)).astype(int)
    grids = np.stack(some)[places].astype(np.int32)
    contact_sheet([Image.fromarray(pixels) for pixels in vqgan.decode(grids)]).save(out / SHEET)
    shares = uses[uses > 0] / uses.sum()
    statistics = {
        "vqgan": fingerprint(vqgan),
        "codebook": {
            "used": len(shares),
            "size": len(uses),
            "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
        },
        "words_per_caption": round(words / report.kept, 2),
        **report.to_dict(),
    }
    write_json(out / STATISTICS, statistics)
    return report


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
            some, grids, facts, names = _read(path)
            identity = identity or facts["vqgan"]
            if facts["vqgan"] != identity:
                raise ValueError(
                    f"{path} must be of the VQGAN {_name(identity)} as the others, got {_name(facts['vqgan'])}"
                )
            captions += some
            keys += names
            codes.append(grids)
        if len(captions) - before != expected:
            raise ValueError(
                f"{folder} must hold {expected} samples, as its {STATISTICS} says, got {len(captions) - before}"
            )
    return Encoded(captions, np.concatenate(codes), identity, keys)


def held_back(keys: Sequence[str]) -> Bool[np.ndarray, " M"]:
    """What training holds back: decided by a key's hash, so that more data moves nothing; never all, and never none.

    Raises ValueError for fewer than two different keys.
    """
    hashes = [int.from_bytes(hashlib.sha256(key.encode(errors="backslashreplace")).digest()[:8]) for key in keys]
    if len(set(hashes)) < 2:
        raise ValueError(f"data must hold 2 or more pictures, one of them to look at, got {len(set(hashes))}")
    ordered = sorted(set(hashes))
    limit = min(max(int(HELD_BACK * 2**64), ordered[0]), ordered[-2])
    return np.array([value <= limit for value in hashes])
