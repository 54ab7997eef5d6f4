"""Sizes of a VQGAN, as the published `config.json` of `dalle-mini/vqgan_imagenet_f16_16384` writes them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Field names are the published ones (Esser et al. 2021, arXiv:2012.09841).

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
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the entries of a `config.json`; entries that do not change the network are ignored."""
        fields = {f.name for f in dataclasses.fields(cls)}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields}
        return cls(**known)

    @classmethod
    def from_json(cls, path: Path) -> Self:
        return cls.from_dict(json.loads(path.read_bytes()))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"
