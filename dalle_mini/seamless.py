"""Pictures that continue on their other side, so that they tile: the grid of codes is painted with itself around it.

Contract: pure numpy. Half a grid lies around the codes, from the other side along the axes that are to tile, and the
border repeated along the others; of what is painted, the middle is the picture. So every pixel has the neighbours that
it has between two tiles, and norms and attention, which look at the whole picture, see every code equally often.
"""

import math

import numpy as np
from jaxtyping import Int, UInt8


def surrounded(codes: Int[np.ndarray, " n"], axes: str) -> Int[np.ndarray, " m"]:
    """The codes of a larger grid. axes: "x", "y" or "both"."""
    side = math.isqrt(len(codes))
    grid, around = codes.reshape(side, side), side // 2
    for axis, name in enumerate("yx"):
        width = [(around, around) if axis == each else (0, 0) for each in range(2)]
        grid = np.pad(grid, width, mode="wrap" if axes in (name, "both") else "edge")
    return grid.ravel()


def middle(pixels: UInt8[np.ndarray, "H W 3"], resolution: int) -> UInt8[np.ndarray, "h w 3"]:
    """What belongs to the codes themselves."""
    edge = (len(pixels) - resolution) // 2
    return pixels[edge : edge + resolution, edge : edge + resolution]
