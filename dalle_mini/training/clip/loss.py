"""The contrastive loss: the symmetric cross-entropy of Radford et al. 2021, section 2.3.

Contract: pure. Equal captions are no negatives of each other, and pictures may be right for none of the captions.
"""

import math

import torch
from jaxtyping import Float, Int
from torch.nn import functional


def contrastive_loss(
    image: Float[torch.Tensor, "M D"],
    text: Float[torch.Tensor, "B D"],
    *,
    tokens: Int[torch.Tensor, "B T"],
    logit_scale: Float[torch.Tensor, ""],
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """Unit rows of pictures and captions -> (loss, share of rows and columns whose own pair wins).

    tokens are the captions as read: rows that are equal are not negatives of each other. Picture i belongs to caption
    i, pictures from B on to none.
    """
    caption_ids = torch.unique(tokens, dim=0, return_inverse=True)[1].to(image.device)  # [B]
    same = (caption_ids[:, None] == caption_ids[None, :]).fill_diagonal_(False)
    same = functional.pad(same, (0, 0, 0, len(image) - len(text)))  # [M, B]
    logits = (logit_scale.exp() * image @ text.T).masked_fill(same, -math.inf)  # [M, B]
    pairs = torch.arange(len(text), device=image.device)
    own = logits[: len(text)]
    loss = (functional.cross_entropy(own, pairs) + functional.cross_entropy(logits.T, pairs)) / 2
    wins = torch.cat([own.argmax(1) == pairs, logits.argmax(0) == pairs])
    return loss, wins.float().mean()
