"""A small CLIP as a folder that open_clip (and our Reranker) reads."""

import json
import os
import shutil
from pathlib import Path

from open_clip.model import CLIP
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file

from clip_rerank.reranker import CONFIG_NAME, WEIGHTS_NAME
from dalle_mini import tokenizer
from dalle_mini.training.clip.config import ClipTrainConfig

# Pixels are scaled to [-1, 1]; the exported config says so to whoever loads the model.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5
# Prompts arrive in any case and with punctuation that no training caption has; open_clip then drops both.
CLEANING = "canonicalize"


def begin_export(folder: Path, config: ClipTrainConfig, *, tokenizer_folder: Path) -> tuple[dict, HFTokenizer]:
    """Write all but the weights; returns open_clip's `model_cfg` and the tokenizer as the folder's readers have it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_NAME).unlink(missing_ok=True)  # until training ends the folder is visibly unfinished
    for name in tokenizer.FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)
    reader = HFTokenizer(str(folder), context_length=config.context_length, clean=CLEANING)
    model_config = _model_config(config, reader)
    _write_config(model_config, folder / CONFIG_NAME)
    return model_config, reader


def finish_export(folder: Path, model: CLIP) -> None:
    """float16 halves the file; open_clip copies it into its float32 parameters."""
    temporary = folder / (WEIGHTS_NAME + ".tmp")
    save_file({name: tensor.cpu().half().contiguous() for name, tensor in model.state_dict().items()}, temporary)
    os.replace(temporary, folder / WEIGHTS_NAME)


def _model_config(config: ClipTrainConfig, tokenizer: HFTokenizer) -> dict:
    """The `model_cfg` of open_clip."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "width": config.width,
            "head_width": config.width // config.heads,
            "layers": config.vision_layers,
        },
        "text_cfg": {
            # Any name makes open_clip read the tokenizer files beside this config.
            "hf_tokenizer_name": "tokenizer files of this folder",
            "tokenizer_kwargs": {"clean": CLEANING},
            "context_length": config.context_length,
            "vocab_size": len(tokenizer.tokenizer),
            "width": config.width,
            "heads": config.heads,
            "layers": config.text_layers,
            # open_clip's default pools at the highest id: the end token of its vocabulary, any word of ours.
            "pool_type": "eos",
            "eos_id": tokenizer.tokenizer.eos_token_id,
            "pad_id": tokenizer.tokenizer.pad_token_id,
        },
    }


def _write_config(model_config: dict, path: Path) -> None:
    preprocess = {
        "mean": [PIXEL_MEAN] * 3,
        "std": [PIXEL_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess}, indent=2)
    path.write_text(text + "\n", "utf-8")
