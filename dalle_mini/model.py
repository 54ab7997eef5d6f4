"""The text-to-code transformer: a bidirectional encoder of tokens and a causal decoder of codes (flax.linen).

Contract: a config, a params dict and functions. The rest of the project calls `init_params`, `param_shapes`,
`encode`, `forward` (training, teacher forced), `cross_kv` and `init_cache` (prefill), and `decode_step`; the linen
modules stay in here. State is passed in and handed back: the KV cache is an argument and a result. One code path
serves both ways of decoding: `forward` is the layer over all positions, `decode_step` the same layer over one.

    CrossKV   k, v: per layer [B, N, S, H], S = max_text_length   mask [B, S]   written once, in prefill
    KVCache   k, v: per layer [B, N, S, H], S = image_length                    one position more each step

Heads come before positions because XLA's CPU products want [S, H] side by side: with [B, S, N, H] it copies the
whole cache, transposed, at every step (measured: 5 times slower).

Every row of a batch is on its own: it has its own text, its own mask and, in `decode_step`, its own position.
A layer is NormFormer (Shleifer et al. 2021): every sublayer has a norm before it and one after it, ahead of the
residual sum, and the GLU (Shazeer 2020) one in its middle. Dense layers have no bias. The residual stream, norms,
softmax and logits are float32; matrix products run in `config.dtype`, to which Dense casts its input.

Letters: B batch, T query, S source, N heads, H head dim, D model, F feed-forward, V vocabulary (logits).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from dalle_mini.config import ModelConfig

Params = dict[str, Any]
# Finite, so that a slot without a text (all masked) gives ordinary numbers and not NaN.
_MASKED = jnp.finfo(jnp.float32).min


class CrossKV(NamedTuple):
    """Keys and values of the text, one entry per decoder layer, and which of its tokens count."""

    k: tuple[Float[Array, "B N S H"], ...]
    v: tuple[Float[Array, "B N S H"], ...]
    mask: Int[Array, "B S"]


class KVCache(NamedTuple):
    """Keys and values of the codes so far, one entry per decoder layer."""

    k: tuple[Float[Array, "B N S H"], ...]
    v: tuple[Float[Array, "B N S H"], ...]


# -- Parts of a layer


def _dense(config: ModelConfig, features: int, *, dot_general: Callable[..., Array] | None = None) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=nn.initializers.normal(config.init_std),
        dot_general=dot_general,
    )


def _norm(config: ModelConfig, *, scale: bool) -> nn.LayerNorm:
    """A float32 LayerNorm. The bias is always there; the scale only where the next Dense cannot absorb it."""
    return nn.LayerNorm(
        epsilon=1e-5,
        use_scale=scale or config.force_ln_scale,
        dtype=jnp.float32,
        param_dtype=jnp.dtype(config.param_dtype),
    )


class Attention(nn.Module):
    """Multi-head attention whose keys and values come from outside: a sequence, a cache or a text."""

    config: ModelConfig
    heads: int

    def setup(self) -> None:
        width = self.config.d_model
        self.q_proj = _dense(self.config, width)
        self.k_proj = _dense(self.config, width)
        self.v_proj = _dense(self.config, width)
        self.out_proj = _dense(self.config, width)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)  # [B, T, D] -> [B, N, T, H]

    def keys_values(self, states: Float[Array, "B S D"]) -> tuple[Array, Array]:
        return self._split(self.k_proj(states)), self._split(self.v_proj(states))  # [B, N, S, H] each

    def __call__(self, x: Float[Array, "B T D"], k: Array, v: Array, mask: Array) -> Float[Array, "B T D"]:
        """mask [B or 1, 1, T or 1, S], true where the query may look."""
        q = self._split(self.q_proj(x))
        scores = jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(mask, scores / q.shape[-1] ** 0.5, _MASKED)
        weights = nn.softmax(scores, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("BNTS,BNSH->BNTH", weights, v)
        return self.out_proj(mixed.swapaxes(1, 2).reshape(x.shape))


class GLU(nn.Module):
    """Gated feed-forward: down(norm(gelu(gate) * up)), with the exact (erf) gelu."""

    config: ModelConfig
    ffn_dim: int

    def setup(self) -> None:
        self.pre_norm = _norm(self.config, scale=False)
        self.gate_proj = _dense(self.config, self.ffn_dim)
        self.up_proj = _dense(self.config, self.ffn_dim)
        self.mid_norm = _norm(self.config, scale=False)
        self.down_proj = _dense(self.config, self.config.d_model)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = self.pre_norm(x)
        gated = nn.gelu(self.gate_proj(x), approximate=False) * self.up_proj(x)  # [B, T, F]
        return self.down_proj(self.mid_norm(gated))


class Embedding(nn.Module):
    """A row per id plus a row per position, then a norm. Position 0 is row 0: BART's offset of 2 is not used."""

    config: ModelConfig
    vocab_size: int
    length: int

    def setup(self) -> None:
        self.ids = self._table(self.vocab_size)
        self.positions = self._table(self.length)
        self.norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, param_dtype=jnp.dtype(self.config.param_dtype))

    def _table(self, rows: int) -> nn.Embed:
        return nn.Embed(
            rows,
            self.config.d_model,
            param_dtype=jnp.dtype(self.config.param_dtype),
            embedding_init=nn.initializers.normal(self.config.init_std),
        )

    def __call__(self, ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        rows = self.ids(ids).astype(jnp.float32) + self.positions(positions).astype(jnp.float32)
        return self.norm(rows)


# -- Encoder


class EncoderLayer(nn.Module):
    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.self_pre_norm = _norm(config, scale=False)
        self.self_attention = Attention(config, config.encoder_attention_heads)
        self.self_post_norm = _norm(config, scale=True)
        self.glu = GLU(config, config.encoder_ffn_dim)

    def __call__(self, x: Float[Array, "B T D"], mask: Array) -> Float[Array, "B T D"]:
        h = self.self_pre_norm(x)
        x = x + self.self_post_norm(self.self_attention(h, *self.self_attention.keys_values(h), mask))
        return x + self.glu(x)


class Encoder(nn.Module):
    config: ModelConfig
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        layer = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        self.embed = Embedding(config, config.encoder_vocab_size, config.max_text_length)
        self.layers = [layer(config) for _ in range(config.encoder_layers)]
        self.final_norm = _norm(config, scale=False)

    def __call__(self, tokens: Int[Array, "B T"], mask: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = self.embed(tokens, _all_positions(tokens))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :] > 0)
        return self.final_norm(x)


# -- Decoder


class DecoderLayer(nn.Module):
    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.self_pre_norm = _norm(config, scale=False)
        self.self_attention = Attention(config, config.decoder_attention_heads)
        self.self_post_norm = _norm(config, scale=True)
        self.cross_pre_norm = _norm(config, scale=False)
        self.cross_attention = Attention(config, config.decoder_attention_heads)
        self.cross_post_norm = _norm(config, scale=True)
        self.glu = GLU(config, config.decoder_ffn_dim)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cross: tuple[Array, Array, Array],
        cache: tuple[Array, Array] | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """cross: this layer's k and v of the text, and its mask. Without a cache, x is the whole sequence."""
        h = self.self_pre_norm(x)
        k, v = self.self_attention.keys_values(h)
        if cache is not None:
            k, v = _write(cache[0], k, positions), _write(cache[1], v, positions)
        seen = jnp.arange(k.shape[2])[None, None, None, :] <= positions[:, None, :, None]  # [B, 1, T, S]
        x = x + self.self_post_norm(self.self_attention(h, k, v, seen))

        cross_k, cross_v, cross_mask = cross
        h = self.cross_pre_norm(x)
        x = x + self.cross_post_norm(self.cross_attention(h, cross_k, cross_v, cross_mask[:, None, None, :] > 0))
        return x + self.glu(x), (k, v)


class Decoder(nn.Module):
    config: ModelConfig
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        layer = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        self.embed = Embedding(config, config.vocab_size, config.image_length)
        self.layers = [layer(config) for _ in range(config.decoder_layers)]
        self.final_norm = _norm(config, scale=False)
        # 16-bit products may be rounded, their sums over D may not: guidance multiplies the logits' error by 10.
        float32_sums = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        self.lm_head = _dense(config, config.vocab_size, dot_general=float32_sums)

    def cross_kv(self, states: Float[Array, "B S D"], mask: Int[Array, "B S"]) -> CrossKV:
        pairs = [layer.cross_attention.keys_values(states) for layer in self.layers]
        return CrossKV(k=tuple(k for k, _ in pairs), v=tuple(v for _, v in pairs), mask=mask)

    def forward(
        self, codes_in: Int[Array, "B T"], states: Float[Array, "B S D"], mask: Int[Array, "B S"]
    ) -> Float[Array, "B T V"]:
        return self(codes_in, _all_positions(codes_in), self.cross_kv(states, mask), None)[0]

    def __call__(
        self, codes: Int[Array, "B T"], positions: Int[Array, "B T"], cross: CrossKV, cache: KVCache | None
    ) -> tuple[Float[Array, "B T V"], KVCache]:
        x = self.embed(codes, positions)
        kept = []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else (cache.k[i], cache.v[i])
            x, layer_cache = layer(x, positions, (cross.k[i], cross.v[i], cross.mask), layer_cache)
            kept.append(layer_cache)
        return self.lm_head(self.final_norm(x)), KVCache(k=tuple(k for k, _ in kept), v=tuple(v for _, v in kept))


def _all_positions(ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    return jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)


def _write(cache: Float[Array, "B N S H"], new: Float[Array, "B N 1 H"], positions: Int[Array, "B 1"]) -> Array:
    """Row b of `new` goes to its own position of row b. A scatter, which XLA does in place on a donated cache."""
    rows = jnp.arange(cache.shape[0])
    return cache.at[rows, :, positions[:, 0]].set(new[:, :, 0], indices_are_sorted=True, unique_indices=True)


# -- What the rest of the project calls


def init_params(config: ModelConfig, rng: Array) -> Params:
    """Fresh params, {"encoder": ..., "decoder": ...}; jit it, or call it under `jax.eval_shape`."""
    encoder_rng, decoder_rng = jax.random.split(rng)
    tokens = jnp.zeros((1, config.max_text_length), jnp.int32)
    states = jnp.zeros((1, config.max_text_length, config.d_model), jnp.float32)
    codes = jnp.zeros((1, config.image_length), jnp.int32)
    encoder = Encoder(config).init(encoder_rng, tokens, tokens)
    decoder = Decoder(config).init(decoder_rng, codes, states, tokens, method="forward")
    return {"encoder": encoder["params"], "decoder": decoder["params"]}


@functools.cache
def param_shapes(config: ModelConfig) -> Params:
    """The tree of `init_params` with a ShapeDtypeStruct for every array; nothing is allocated."""
    one = dataclasses.replace(config, encoder_layers=1, decoder_layers=1)  # layers are alike; tracing 48 takes seconds
    shapes = jax.eval_shape(lambda: init_params(one, jax.random.key(0)))
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        shapes[side] |= {f"layers_{i}": shapes[side]["layers_0"] for i in range(layers)}
    return shapes


def encode(
    params: Params, config: ModelConfig, tokens: Int[Array, "B S"], mask: Int[Array, "B S"], *, remat: bool = False
) -> Float[Array, "B S D"]:
    """States of the text. mask: 1 for a token, 0 for padding, whose states are numbers that nothing reads."""
    return Encoder(config, remat).apply({"params": params["encoder"]}, tokens, mask)


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B S"],
    mask: Int[Array, "B S"],
    codes_in: Int[Array, "B T"],
    *,
    remat: bool = False,
) -> Float[Array, "B T V"]:
    """Teacher-forced float32 logits: those at t predict code t, having seen codes_in[:, :t + 1].

    codes_in[:, 0] is bos_code and the rest are the codes of the picture, moved one place to the right. With `remat`
    the backward pass computes each layer again, from its input, which is all that is kept of it.
    """
    states = encode(params, config, tokens, mask, remat=remat)
    return Decoder(config, remat).apply({"params": params["decoder"]}, codes_in, states, mask, method="forward")


def cross_kv(params: Params, config: ModelConfig, states: Float[Array, "B S D"], mask: Int[Array, "B S"]) -> CrossKV:
    """Keys and values of `encode`'s states for every decoder layer: computed once, in prefill."""
    return Decoder(config).apply({"params": params["decoder"]}, states, mask, method="cross_kv")


def init_cache(config: ModelConfig, batch: int) -> KVCache:
    """An empty cache for `batch` rows, in config.dtype."""
    heads = config.decoder_attention_heads
    shape = (batch, heads, config.image_length, config.d_model // heads)
    k, v = (tuple(jnp.zeros(shape, config.dtype) for _ in range(config.decoder_layers)) for _ in "kv")
    return KVCache(k=k, v=v)


def decode_step(
    params: Params,
    config: ModelConfig,
    cross: CrossKV,
    cache: KVCache,
    codes: Int[Array, " B"],
    positions: Int[Array, " B"],
) -> tuple[Float[Array, "B V"], KVCache]:
    """One code further: float32 logits of the code after `codes`, and the cache with their keys and values.

    Row b feeds codes[b] (bos_code at position 0) at its own positions[b]; what the cache holds beyond that position
    is not looked at. A position outside [0, image_length) writes nothing and gives NaN logits, in its own row only.
    Donate the cache (or carry it through `lax.scan`) and it is updated in place.
    """
    variables = {"params": params["decoder"]}
    logits, cache = Decoder(config).apply(variables, codes[:, None], positions[:, None], cross, cache)
    return logits[:, 0], cache
