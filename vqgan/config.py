"""Sizes of the two networks that turn pictures into codes and back; the keys of a `config.json` say of which.

Contract: both have `resolution` and `side` (pixels and codes along a side of a picture), `downscale` (pixels along the
side of what one code stands for) and `codebook_size`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """A VQGAN's, as `dalle-mini/vqgan_imagenet_f16_16384` writes them (Esser et al. 2021, arXiv:2012.09841).

    `num_groups` is ours: group normalisation needs several channels a group, so that a narrow network
    cannot keep the published 32 groups (one channel a group erases every flat colour).
    """

    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    z_channels: int = 256
    n_embed: int = 16384
    embed_dim: int = 256
    num_groups: int = 32
    resamp_with_conv: bool = True
    double_z: bool = False
    give_pre_end: bool = False

    def __post_init__(self) -> None:
        for name, must in {"in_channels": 3, "out_ch": 3, "double_z": False, "give_pre_end": False}.items():
            if getattr(self, name) != must:
                raise ValueError(f"{name} must be {must} for a VQGAN that paints, got {getattr(self, name)!r}")
        for name in ("resolution", "ch", "num_res_blocks", "z_channels", "n_embed", "embed_dim", "num_groups"):
            _check_size(name, getattr(self, name))
        for name in ("ch_mult", "attn_resolutions"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(type(each) is int and each >= 1 for each in value):
                raise ValueError(f"{name} must be a list of whole numbers >= 1, got {value!r}")
        if not self.ch_mult or any(self.ch * m % self.num_groups for m in self.ch_mult):
            raise ValueError(
                f"ch * ch_mult must be multiples of num_groups={self.num_groups}, got {self.ch} * {self.ch_mult}"
            )
        if self.resolution % self.downscale:
            raise ValueError(f"resolution must be a multiple of {self.downscale}, got {self.resolution}")

    @property
    def downscale(self) -> int:
        """Pixels along one side of the square that one code stands for."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def side(self) -> int:
        """Codes along one side of a picture of `resolution` pixels."""
        return self.resolution // self.downscale

    @property
    def codebook_size(self) -> int:
        return self.n_embed

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the entries of a `config.json`; entries that do not change the network are ignored."""
        return _from_dict(cls, values)

    @classmethod
    def from_json(cls, path: Path) -> Self:
        return cls.from_dict(json.loads(path.read_bytes()))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DVAEConfig:
    """A dVAE's: names and defaults are those of OpenAI's encoder and decoder (Ramesh et al. 2021, arXiv:2102.12092).

    `resolution` is ours: the network itself reads pictures of any multiple of 8 pixels. So are the SHA-256 of the
    published files, where it was converted from them (checkpoint.py).
    """

    resolution: int = 256
    n_hid: int = 256
    n_blk_per_group: int = 2
    vocab_size: int = 8192
    n_init: int = 128
    input_channels: int = 3
    output_channels: int = 3
    group_count: int = 4
    encoder_sha256: str = ""
    decoder_sha256: str = ""

    def __post_init__(self) -> None:
        for name, must in {"input_channels": 3, "output_channels": 3, "group_count": 4}.items():
            if getattr(self, name) != must:
                raise ValueError(f"{name} must be {must} for a dVAE, got {getattr(self, name)!r}")
        for name in ("resolution", "n_hid", "n_blk_per_group", "vocab_size", "n_init"):
            _check_size(name, getattr(self, name))
        if self.n_hid % 4:
            raise ValueError(f"n_hid must be a multiple of 4, got {self.n_hid}")
        if self.resolution % self.downscale:
            raise ValueError(f"resolution must be a multiple of {self.downscale}, got {self.resolution}")

    @property
    def downscale(self) -> int:
        return 2 ** (self.group_count - 1)

    @property
    def side(self) -> int:
        return self.resolution // self.downscale

    @property
    def codebook_size(self) -> int:
        return self.vocab_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return _from_dict(cls, values)

    def to_json(self) -> str:
        return json.dumps({"model_type": "dvae", **dataclasses.asdict(self)}, indent=2) + "\n"


CodecConfig = VQGANConfig | DVAEConfig


def config_of(values: Mapping[str, Any]) -> CodecConfig:
    """The sizes in the entries of a `config.json`.

    Raises ValueError for what is neither's: without any size, those of a default would be taken.
    """
    if "n_hid" in values:
        return DVAEConfig.from_dict(values)
    if not {"n_embed", "z_channels", "ch_mult"} & values.keys():
        raise ValueError(
            f"config.json must be a VQGAN's or a dVAE's, got one of model_type {values.get('model_type')!r}"
        )
    return VQGANConfig.from_dict(values)


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def _from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in fields}
    return kind(**known)
