"""Pictures to codes, once, written as shards.

Contract: shard k covers the rows [k * shard_rows, (k + 1) * shard_rows) of a source and is a pure function of them and
of the VQGAN. It appears whole or not at all, so an encode that was stopped goes on with the first shard that is
missing, and ends with what an uninterrupted one ends with. What is in the folder, `shards` says.
"""

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from dalle_mini.gallery import contact_sheet
from dalle_mini.pictures import square
from dalle_mini.training.data.rows import Row, Sample, read_samples
from dalle_mini.training.data.shards import FACTS, STATISTICS, fingerprint, named, read_shard
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source
from dalle_mini.training.optional_packages import optional
from dalle_mini.training.report.quality import codebook_use
from vqgan import BATCH, Codec
from vqgan.files import write_json

SHARD_ROWS = 1000  # at a second a picture, what a stopped encode loses is at most a quarter of an hour
SHEET = "sheet.png"
SHEET_PICTURES = 16


def encode(source: str | Path, vqgan: Codec, *, out: Path, shard_rows: int = SHARD_ROWS) -> Report:
    """Write the shards of `source` that `out` does not have yet, on all local devices, then statistics and a sheet.

    Pictures are cropped to a centred square of the VQGAN's resolution. Raises ValueError if there is none to encode,
    or if `out` holds shards of another VQGAN, of another source, or of this one before it changed.
    """
    if vqgan.codebook_size > 2**16:
        raise ValueError(f"codebook_size must be <= 65536, to be written in 16 bits, got {vqgan.codebook_size}")
    rows, identity = open_source(source), fingerprint(vqgan)
    out.mkdir(parents=True, exist_ok=True)
    (out / STATISTICS).unlink(missing_ok=True)
    painters = [Codec(vqgan.config, jax.device_put(vqgan.params, device)) for device in jax.local_devices()]
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


def _encode_samples(samples: Iterator[Sample], painters: Sequence[Codec], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """The columns of a shard."""
    config = painters[0].config
    keys: list[str] = []
    captions: list[str] = []
    codes = [np.zeros((0, config.side**2), np.int32)]
    while batch := list(islice(samples, BATCH * len(painters))):
        pixels = np.stack([square(sample.image, config.resolution) for sample in batch])
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        codes += pool.map(Codec.encode, painters, parts)
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


def _check(path: Path, identity: dict[str, Any], part: _Part) -> None:
    """A shard that is there already must be the one that would be written."""
    _, _, facts, _ = read_shard(path)
    if facts["vqgan"] != identity:
        raise ValueError(
            f"{path} must be of the VQGAN {named(identity)}, got {named(facts['vqgan'])}: use a new folder"
        )
    hashes = part.hashes
    if facts["source"] != hashes["source"]:
        raise ValueError(f"{path} must be of the same rows of the same source, got others: use a new folder")
    if facts.get("pictures", hashes["pictures"]) != hashes["pictures"]:  # older shards do not say
        raise ValueError(f"{path} must be of the same pictures as the source has, got others: use a new folder")


def _finish(out: Path, vqgan: Codec) -> Report:
    report, uses, words = Report(), np.zeros(vqgan.codebook_size, np.int64), 0
    some: list[np.ndarray] = []
    shards = sorted(out.glob("*.parquet"))
    for path in shards:
        captions, codes, facts, _ = read_shard(path)
        report.add(Report(**facts["report"]))
        uses += np.bincount(codes.ravel(), minlength=len(uses))
        words += sum(len(caption.split()) for caption in captions)
        # Evenly from all shards, and not many more than are shown.
        some += list(codes[:: max(1, len(codes) * len(shards) // SHEET_PICTURES)])
    if not report.kept:
        raise ValueError(f"source must hold pictures with captions, got {report.explained()}")
    places = np.linspace(0, len(some) - 1, min(len(some), SHEET_PICTURES)).astype(int)
    grids = np.stack(some)[places].astype(np.int32)
    contact_sheet([Image.fromarray(pixels) for pixels in vqgan.decode(grids)]).save(out / SHEET)
    use = codebook_use(uses)
    statistics = {
        "vqgan": fingerprint(vqgan),
        "codebook": {
            "used": use["used"],
            "size": use["size"],
            "perplexity": round(use["perplexity"], 2),
        },
        "words_per_caption": round(words / report.kept, 2),
        **report.to_dict(),
    }
    write_json(out / STATISTICS, statistics)
    return report
