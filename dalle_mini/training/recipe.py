"""Recipes: every size and setting of a training run in one TOML file, which the command line can override.

Contract: `load` checks all of a recipe before anything is allocated; whatever is wrong is a ValueError that names
section.key, the rule and the value. A section that a recipe leaves out is missed only by who needs it.

    [world]            fields of dalle_mini.training.emoji.config.WorldConfig: for recipes with data of their own
    [vqgan]            fields of vqgan.config.VQGANConfig
    [vqgan.training]   fields of dalle_mini.training.vqgan.config.VQGANTrainConfig
    [dvae]             fields of vqgan.config.DVAEConfig
    [dvae.training]    fields of dalle_mini.training.dvae.config.DVAETrainConfig
    [encoder.training] fields of dalle_mini.training.vqgan.config.EncoderTrainConfig: the VQGAN's encoder alone
    [decoder.training] fields of dalle_mini.training.vqgan.config.DecoderTrainConfig: its decoder alone
    [dalle]            fields of dalle_mini.config.ModelConfig and its settings of sampling. What follows from the
                       tokenizer and the VQGAN may be left out; what is given must agree with them.
    [dalle.training]   fields of dalle_mini.training.dalle.config.DalleTrainConfig
    [clip.training]    fields of dalle_mini.training.clip.config.ClipTrainConfig
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dalle_mini.config import PUBLISHED_CODEBOOK_SIZE, ModelConfig
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.training.clip.config import ClipTrainConfig
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dvae.config import DVAETrainConfig
from dalle_mini.training.emoji.config import WorldConfig
from dalle_mini.training.vqgan.config import DecoderTrainConfig, EncoderTrainConfig, VQGANTrainConfig
from vqgan.config import CodecConfig, DVAEConfig, VQGANConfig

FOLDER = Path(__file__).parent / "recipes"
SECTIONS = (
    "world",
    "vqgan",
    "vqgan.training",
    "dvae",
    "dvae.training",
    "encoder.training",
    "decoder.training",
    "dalle",
    "dalle.training",
    "clip.training",
)
KNOBS = ("condition_scale", "temperature", "top_k", "top_p")  # of SamplingParams, as a config.json has them
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe: tables by section, as a TOML file writes them."""

    name: str
    tables: Mapping[str, Mapping[str, Any]]

    def world(self) -> WorldConfig:
        return _build(WorldConfig, self._table("world"), "world")

    def vqgan(self) -> VQGANConfig:
        return _build(VQGANConfig, self._table("vqgan"), "vqgan")

    def vqgan_training(self) -> VQGANTrainConfig:
        return _build(VQGANTrainConfig, self._table("vqgan.training"), "vqgan.training")

    def dvae(self) -> DVAEConfig:
        return _build(DVAEConfig, self._table("dvae"), "dvae")

    def dvae_training(self) -> DVAETrainConfig:
        return _build(DVAETrainConfig, self._table("dvae.training"), "dvae.training")

    def encoder_training(self) -> EncoderTrainConfig:
        return _build(EncoderTrainConfig, self._table("encoder.training"), "encoder.training")

    def decoder_training(self) -> DecoderTrainConfig:
        return _build(DecoderTrainConfig, self._table("decoder.training"), "decoder.training")

    def dalle_training(self) -> DalleTrainConfig:
        return _build(DalleTrainConfig, self._table("dalle.training"), "dalle.training")

    def clip_training(self) -> ClipTrainConfig:
        return _build(ClipTrainConfig, self._table("clip.training"), "clip.training")

    def dalle(self, *, vocab_size: int | None = None, vqgan: CodecConfig | None = None) -> ModelConfig:
        """The sizes for a tokenizer of `vocab_size` tokens and a VQGAN; of the recipe's own word for what is None.

        Raises ValueError where the recipe says something else than they do.
        """
        given = dict(self._table("dalle"))
        if vocab_size is not None:
            if given.setdefault("encoder_vocab_size", vocab_size) < vocab_size:
                rule = f"dalle.encoder_vocab_size must be >= the tokenizer's {vocab_size} tokens"
                raise ValueError(f"{rule}, got {given['encoder_vocab_size']}")
        elif "encoder_vocab_size" not in given:
            raise ValueError(f"dalle.encoder_vocab_size must be given in recipe {self.name} or follow from a tokenizer")
        if vqgan is None and "vqgan" in self.tables:
            vqgan = self.vqgan()
        if vqgan is not None:
            for name, value in {"codebook_size": vqgan.codebook_size, "image_length": vqgan.side**2}.items():
                if given.setdefault(name, value) != value:
                    raise ValueError(f"dalle.{name} must be the VQGAN's {value}, got {given[name]}")
        return _model_config(given)

    def _table(self, section: str) -> Mapping[str, Any]:
        if section not in self.tables:
            raise ValueError(f"recipe {self.name} must have a section [{section}], got {sorted(self.tables)}")
        return self.tables[section]


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or a TOML file, with overrides such as "dalle.training.steps=30".

    Raises ValueError, naming section.key, the rule and the value.
    """
    path = FOLDER / f"{recipe}.toml" if str(recipe) in names() else Path(recipe)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} must be a TOML file, got: {error}") from None
    except (OSError, ValueError):  # the latter for what cannot be a path
        raise ValueError(f"recipe must be one of {', '.join(names())} or a TOML file, got {str(recipe)!r}") from None
    for text in overrides:
        _override(raw, text)
    loaded = Recipe(name=path.stem, tables=_tables(raw))
    for section, check in {
        "world": loaded.world,
        "vqgan": loaded.vqgan,
        "vqgan.training": loaded.vqgan_training,
        "dvae": loaded.dvae,
        "dvae.training": loaded.dvae_training,
        "encoder.training": loaded.encoder_training,
        "decoder.training": loaded.decoder_training,
        "dalle.training": loaded.dalle_training,
        "clip.training": loaded.clip_training,
        "dalle": lambda: loaded.dalle(vocab_size=None if "encoder_vocab_size" in loaded.tables["dalle"] else 1),
    }.items():
        if section in loaded.tables:
            check()
    return loaded


def _override(raw: dict[str, Any], text: str) -> None:
    """Put a "section.key=value" into the tables; the value is TOML, or a bare word."""
    path, equals, value = (part.strip() for part in text.partition("="))
    *section, key = path.split(".")
    if not (equals and key and all(section)) or not section:
        raise ValueError(f"a setting must be section.key=value, such as dalle.training.steps=30, got {text!r}")
    table = raw
    for name in section:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"{path} must be a key of a section, got {text!r}")
    try:
        table[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[key] = value


def _tables(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"vqgan": {..., "training": {...}}} -> {"vqgan": {...}, "vqgan.training": {...}}."""
    tables: dict[str, dict[str, Any]] = {}
    for name, table in raw.items():
        if not isinstance(table, dict):
            raise ValueError(f"{name} must be in one of the sections {', '.join(SECTIONS)}, got {name} = {table!r}")
        rest = dict(table)
        if "training" in rest:
            tables[f"{name}.training"] = rest.pop("training")
        if rest:
            tables[name] = rest
    for name, table in tables.items():
        if name not in SECTIONS or not isinstance(table, dict):
            raise ValueError(f"{name} must be one of the sections {', '.join(SECTIONS)}, got {name} = {table!r}")
    return tables


def _model_config(given: Mapping[str, Any]) -> ModelConfig:
    """[dalle] as sizes; what the training decides (`dtype`) and the recipe leaves out has the published value."""
    fields = typing.get_type_hints(ModelConfig)
    kinds: dict[str, Any] = {
        name: kind for name, kind in fields.items() if name not in ("sampling", "dtype", "param_dtype")
    }
    kinds |= {name: kind for name, kind in typing.get_type_hints(SamplingParams).items() if name in KNOBS}
    values = {name: _checked(value, _kind(kinds, name, "dalle"), f"dalle.{name}") for name, value in given.items()}
    values.setdefault("codebook_size", values.get("image_vocab_size", PUBLISHED_CODEBOOK_SIZE))
    values.setdefault("image_vocab_size", values["codebook_size"])
    try:
        return ModelConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"dalle.{error}") from None


def _build(kind: type[Config], given: Mapping[str, Any], where: str) -> Config:
    """A frozen dataclass from a table; a field that is a dataclass itself is a table in it."""
    kinds = typing.get_type_hints(kind)
    values = {name: _checked(value, _kind(kinds, name, where), f"{where}.{name}") for name, value in given.items()}
    missing = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ValueError(f"{where}.{missing[0]} must be given, got nothing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _kind(kinds: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in kinds:
        raise ValueError(f"{where}.{name} must be one of {where}'s keys ({', '.join(kinds)}), got {name!r}")
    return kinds[name]


def _checked(value: Any, kind: Any, where: str) -> Any:
    """`value` as the type `kind` of a field."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return _build(kind, value, where)
    if not _is(value, kind):
        rule = getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)
        raise ValueError(f"{where} must be of type {rule}, got {value!r}")
    if isinstance(value, list):
        return tuple(value)
    return float(value) if kind is float else value


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            return False
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return len(each) == len(value) and all(map(_is, value, each))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind
