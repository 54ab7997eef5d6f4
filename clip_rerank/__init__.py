"""CLIP (Radford et al. 2021): which of the candidates looks most like the prompt?

Only this package and the training of CLIP import torch. It imports nothing of ours: text and pixels go in, one
score per picture comes out. Importing it takes seconds, so whoever may run without reranking imports it late.
"""

from clip_rerank.reranker import Reranker, RerankerError

__all__ = ["Reranker", "RerankerError"]
