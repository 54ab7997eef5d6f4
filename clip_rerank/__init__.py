"""CLIP (Radford et al. 2021): which of the candidates looks most like the prompt?

This package is the only one that imports torch to compute with it (vqgan/checkpoint.py reads one kind of file), and
open_clip. It imports nothing of ours: text and pixels go in, one score per picture comes out. Importing it takes
seconds, so whoever may run without reranking imports it late.
"""

from clip_rerank.reranker import Reranker, RerankerError

__all__ = ["Reranker", "RerankerError"]
