"""Datasets of Hugging Face, saved by `save_to_disk` or streamed from the hub: the split "train", or the only one."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dalle_mini.training.data.found import Finder, pass_over
from dalle_mini.training.data.records import Record
from dalle_mini.training.data.rows import Row
from dalle_mini.training.data.tables import Keys, check_columns, record_rows
from dalle_mini.training.optional_packages import optional


def hub_rows(location: str, *, captioned: bool) -> Iterator[Row]:
    here = "a Hugging Face dataset" if os.path.exists(location) else "no file or folder here, but may be a hub id"
    datasets = optional("datasets", f"to read {location!r}, which is {here}")
    repo, _, revision = location.partition("@")
    try:
        if os.path.exists(location):
            dataset = datasets.load_from_disk(location)
        else:
            dataset = datasets.load_dataset(repo, revision=revision or None, streaming=True)
        dataset, others = _split(dataset)
        columns = check_columns(dataset.column_names or list(next(iter(dataset), {})), location, captioned=captioned)
        dataset = dataset.cast_column(columns.picture, datasets.Image(decode=False))
        next(iter(dataset), None)  # what is streamed is only cast as it is read
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:  # the last two are pyarrow's
        rule = "source must be a dataset with a split 'train' and pictures in it"
        raise ValueError(f"{rule}, got {location!r}: {error}") from None

    def rows() -> Iterator[Row]:
        finder, keys, name = Finder(Path(location), []), Keys(), Path(location).name
        for number, values in enumerate(dataset):
            record = Record(str(number), values)
            yield from record_rows(record, columns, finder, keys, place=f"{name}:{number}", captioned=captioned)
        yield from (pass_over(other, "other split") for other in others)

    return rows()


def _split(dataset: Any) -> tuple[Any, list[str]]:
    """The one to train on, and the names of the others."""
    if not isinstance(dataset, Mapping):
        return dataset, []
    name = next(iter(dataset)) if len(dataset) == 1 else "train"
    return dataset[name], [other for other in dataset if other != name]
