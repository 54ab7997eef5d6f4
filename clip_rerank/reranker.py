"""A CLIP model that scores pictures against a prompt.

Contract: `Reranker.load(location)` reads an open_clip model once; `score(prompts, pixels)` gives the cosine
similarity of every picture with its prompt, in float32. A score depends on the model, the prompt and the
picture, never on the other pictures of the call. A local folder is read without a request to any host.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.
"""

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from jaxtyping import Float32
from PIL import Image

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"

# Every call of the image tower has this many rows, padded with the last picture: matrix products of one shape
# add up in one order, so a picture scores the same, to the bit, alone and in company. It also bounds memory.
IMAGES_PER_CALL = 8


class RerankerError(Exception):
    """The CLIP model is missing, damaged or not one that we read."""


class Reranker:
    """A loaded CLIP model; see `load`. A call changes nothing in it, so threads may share one.

    name: the local folder's name, or the location it was loaded from.
    """

    def __init__(
        self,
        *,
        name: str,
        model: open_clip.CLIP | open_clip.CustomTextCLIP,
        preprocess: Callable[[Image.Image], torch.Tensor],  # picture -> [3, H, W], as the model's config says
        tokenize: Callable[[list[str]], torch.Tensor],  # texts -> [B, T]
    ) -> None:
        self.name = name
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._preprocess = preprocess
        self._tokenize = tokenize

    @classmethod
    def load(cls, location: str) -> "Reranker":
        """Loads a CLIP model, on the GPU when torch has one.

        location: a local folder (open_clip_config.json, open_clip_model.safetensors and, if the config names a
            tokenizer, its files), "MODEL/PRETRAINED_TAG" as open_clip lists them, or "hf-hub:owner/name".
        Raises RerankerError in one sentence that names the location.
        """
        folder = Path(location)
        if folder.is_dir():
            _check_folder(folder)
            source, tag, name = f"local-dir:{folder}", None, folder.resolve().name
        elif location.startswith("hf-hub:"):
            source, tag, name = location, None, location
        else:
            source, _, tag = location.rpartition("/")
            name = location
            if tag not in open_clip.list_pretrained_tags_by_model(source):
                raise RerankerError(
                    "the CLIP model must be an existing folder, a MODEL/PRETRAINED_TAG that open_clip knows "
                    f"or hf-hub:owner/name, got {location!r}"
                )
        try:
            model, preprocess = open_clip.create_model_from_pretrained(
                source,
                tag,
                # The tag says which activation its weights were trained with; open_clip would only warn.
                force_quick_gelu=bool(tag and open_clip.get_pretrained_cfg(source, tag).get("quick_gelu")),
            )
            reranker = cls(name=name, model=model, preprocess=preprocess, tokenize=open_clip.get_tokenizer(source))
            # Files that do not fit each other, a foreign tokenizer above all, show it when they are used.
            reranker.score("a picture", np.zeros((1, 64, 64, 3), np.uint8))
        except Exception as error:  # a damaged file can surface as almost any exception of four libraries
            raise RerankerError(f"cannot load the CLIP model {location!r}: {_one_line(error)}") from error
        return reranker

    @torch.inference_mode()
    def score(self, prompts: str | Sequence[str], pixels: np.ndarray) -> Float32[np.ndarray, " B"]:
        """Cosine similarity in [-1, 1] of each picture with its prompt, or with the only one; higher is better.

        pixels: uint8 [B, H, W, 3] of any height and width. A prompt longer than the model reads is cut.
        Raises ValueError for pixels of another shape or type, or another number of prompts.
        """
        _check_pixels(pixels)
        prompts = [prompts] * len(pixels) if isinstance(prompts, str) else prompts
        if len(prompts) != len(pixels):
            raise ValueError(f"prompts must be one, or one for each of {len(pixels)} pictures, got {len(prompts)}")
        texts = {prompt: self._embed_text(prompt) for prompt in dict.fromkeys(prompts)}
        scores = np.zeros(len(pixels), np.float32)
        for start in range(0, len(pixels), IMAGES_PER_CALL):
            call = np.s_[start : start + IMAGES_PER_CALL]
            of_call = torch.stack([texts[prompt] for prompt in prompts[call]])
            scores[call] = (self._embed_images(pixels[call]) * of_call).sum(1).cpu().numpy()
        return scores

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> Float32[np.ndarray, "B D"]:
        """What the image tower says of each picture, not normalised: for the statistics of sets of pictures (FID).

        pixels: as in `score`. Raises ValueError for another shape or type.
        """
        _check_pixels(pixels)
        calls = [pixels[start : start + IMAGES_PER_CALL] for start in range(0, len(pixels), IMAGES_PER_CALL)]
        return np.concatenate([self._embed_images(call, normalize=False).cpu().numpy() for call in calls])

    def _embed_text(self, prompt: str) -> torch.Tensor:
        """Unit vector [D]. One by one, so that a text's bits do not depend on the others."""
        return self._model.encode_text(self._tokenize([prompt]).to(self._device), normalize=True)[0]

    def _embed_images(self, pixels: np.ndarray, *, normalize: bool = True) -> torch.Tensor:
        """uint8 [n, H, W, 3] with n <= IMAGES_PER_CALL -> [n, D], unit vectors if `normalize`."""
        images = [self._preprocess(Image.fromarray(picture)) for picture in pixels]
        images += [images[-1]] * (IMAGES_PER_CALL - len(images))
        return self._model.encode_image(torch.stack(images).to(self._device), normalize=normalize)[: len(pixels)]


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 [B, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")


def _check_folder(folder: Path) -> None:
    """Refuses a folder that lacks a file, or that open_clip would complete from the network."""
    for file_name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / file_name).is_file():
            raise RerankerError(f"the CLIP folder {folder} lacks {file_name}")
    path = folder / CONFIG_NAME
    try:
        hub_text_tower = json.loads(path.read_bytes())["model_cfg"]["text_cfg"].get("hf_model_name")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RerankerError(f"{path} is not an open_clip config ({type(error).__name__}: {error})") from error
    if hub_text_tower:
        raise RerankerError(
            f"{path} must not set text_cfg.hf_model_name, whose network is described only on the hub, "
            f"got {hub_text_tower!r}"
        )


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")
