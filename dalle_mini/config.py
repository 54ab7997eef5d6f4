"""What a model is: `ModelConfig`, frozen and validated.

Contract: `ModelConfig` reads the published `config.json` as it is. It holds the sizes of the one family that
`model.py` implements; a config that asks for anything else is refused, naming the key and the value. Keys that
say nothing about the network (`architectures`, `transformers_version`, token ids of the saver, ...) are ignored.
How it is sampled is in `sampling_params.py`.

Papers: DALL·E mini is BART (Lewis et al. 2019) with NormFormer norms (Shleifer et al. 2021) and GLU feed-forwards
(Shazeer 2020).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dalle_mini.sampling_params import SamplingParams, is_number, whole

PUBLISHED_CODEBOOK_SIZE = 16384

# The network of model.py in the words of the published config: each key with the one value we implement.
# An absent key means this value too (these are the reference's own defaults).
_FAMILY: dict[str, Any] = {
    "ln_positions": "normformer",
    "ln_type": "layernorm",
    "activation_function": "gelu",
    "use_glu": True,
    "use_bias": False,
    "use_absolute_position_embeddings": True,
    "use_final_ln_encoder": True,
    "use_final_ln_decoder": True,
    "use_swin_position_embeddings": False,
    "use_cosine_attention": False,
    "use_head_scale": False,
    "use_alibi": False,
    "use_deepnet_scaling": False,
    "use_subln_init": False,
    "scale_embedding": False,
    "tie_word_embeddings": False,
    "sinkhorn_iters": 1,
}
_DTYPES = ("float32", "bfloat16", "float16")
_KNOBS = ("condition_scale", "temperature", "top_k", "top_p")  # the settings that belong to a model, not to a request


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of one text-to-code model, named as in the published `config.json`.

    `codebook_size`, `dtype` and `param_dtype` are ours: the codes the VQGAN knows (those above are never emitted),
    the dtype of matrix products, and the dtype that params are stored in.
    """

    encoder_vocab_size: int
    image_vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    image_length: int = 256
    max_text_length: int = 64
    decoder_start_token_id: int
    codebook_size: int
    normalize_text: bool = False
    force_ln_scale: bool = False
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                lowest = 0 if field.name == "decoder_start_token_id" else 1
                object.__setattr__(self, field.name, whole(field.name, getattr(self, field.name), lowest))
            elif field.type is bool and not isinstance(getattr(self, field.name), bool):
                raise ValueError(f"{field.name} must be true or false, got {getattr(self, field.name)!r}")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"{name} must divide d_model {self.d_model}, got {getattr(self, name)}")
        if math.isqrt(self.image_length) ** 2 != self.image_length:
            raise ValueError(f"image_length must be a square number, got {self.image_length}")
        if self.decoder_start_token_id > self.image_vocab_size:
            raise ValueError(
                f"decoder_start_token_id must be <= image_vocab_size {self.image_vocab_size}, "
                f"got {self.decoder_start_token_id}"
            )
        if self.codebook_size > self.image_vocab_size:
            raise ValueError(
                f"codebook_size must be <= image_vocab_size {self.image_vocab_size}, got {self.codebook_size}"
            )
        if not (is_number(self.init_std) and 0 < self.init_std < math.inf):
            raise ValueError(f"init_std must be a number > 0, got {self.init_std!r}")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(f"{name} must be one of {', '.join(_DTYPES)}, got {getattr(self, name)!r}")

    @property
    def bos_code(self) -> int:
        """The code that starts every sequence; it is never drawn."""
        return self.decoder_start_token_id

    @property
    def vocab_size(self) -> int:
        """Classes of the logits: image_vocab_size and one more row, which the published tables have."""
        return self.image_vocab_size + 1

    @property
    def side(self) -> int:
        """Codes per row of the picture."""
        return math.isqrt(self.image_length)

    @classmethod
    def from_json(cls, path: Path | str) -> Self:
        """Reads a `config.json`; raises ValueError for what is missing, wrong or outside the family."""
        try:
            raw = json.loads(Path(path).read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} must be a JSON file, got: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(raw).__name__}")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """As `from_json`, from the object itself. A key that is null counts as absent."""
        given = {name: value for name, value in raw.items() if value is not None}
        for name, value in _FAMILY.items():
            if given.get(name, value) != value:
                raise ValueError(f"{name} must be {value!r} (the family of DALL·E mini and mega), got {given[name]!r}")
        names = {field.name for field in dataclasses.fields(cls)} - {"sampling"}
        sizes = {name: value for name, value in given.items() if name in names}
        if "image_vocab_size" in sizes:
            image_vocab_size = whole("image_vocab_size", sizes["image_vocab_size"], 1)
            sizes.setdefault("decoder_start_token_id", image_vocab_size)
            sizes.setdefault("codebook_size", min(image_vocab_size, PUBLISHED_CODEBOOK_SIZE))
        required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(required - set(sizes)):
            raise ValueError(f"the config must have {', '.join(missing)}, got none")
        sampling = SamplingParams(**{name: given[name] for name in _KNOBS if name in given})
        return cls(**sizes, sampling=sampling)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this model, `from_dict`'s inverse; the family's fixed keys are written out."""
        raw = dataclasses.asdict(self)
        del raw["sampling"]
        knobs = {name: getattr(self.sampling, name) for name in _KNOBS}
        return {"model_type": "dallebart", **_FAMILY, **raw, **knobs}


MINI = ModelConfig(
    encoder_vocab_size=50264,
    image_vocab_size=16384,
    d_model=1024,
    encoder_layers=12,
    decoder_layers=12,
    encoder_attention_heads=16,
    decoder_attention_heads=16,
    encoder_ffn_dim=2730,
    decoder_ffn_dim=2730,
    decoder_start_token_id=16384,
    codebook_size=PUBLISHED_CODEBOOK_SIZE,
    normalize_text=True,
)
# mega's 31 classes above bos_code are padding of the table for sharding.
MEGA = dataclasses.replace(
    MINI,
    encoder_vocab_size=50272,
    image_vocab_size=16415,
    d_model=2048,
    encoder_layers=24,
    decoder_layers=24,
    encoder_attention_heads=32,
    decoder_attention_heads=32,
    encoder_ffn_dim=4096,
    decoder_ffn_dim=4096,
)
