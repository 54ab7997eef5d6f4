"""CLIP as the recipe has it, in bfloat16 where the CPU multiplies it; the pictures painted by the torch twin."""
import sys, os
from pathlib import Path
import numpy as np, torch
from torch.nn.attention import sdpa_kernel, SDPBackend
run = Path(sys.argv[1]); sets = sys.argv[2:]
sys.argv = ["x", str(run), str(run/"none"), "0", "16"]
src = open(Path(__file__).with_name("decoder.py")).read().split("scenes = T._held_out_scenes")[0]
exec(src)
from PIL import Image
def paint_all(network, codes, side):
    out = np.empty((len(codes), side, side, 3), np.uint8); tree = nest({k: v.detach() for k, v in tr.items()})
    with torch.no_grad():
        for i in range(0, len(codes), 128):
            p = paint(tree, torch.as_tensor(codes[i:i+128]).long()).clamp(0, 1).numpy()
            out[i:i+128] = (p*255+0.5).astype(np.uint8)
    print("painted", flush=True); return out
T._paint = paint_all
from open_clip.model import CLIP
f0 = CLIP.forward
def bf(self, *a):
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16): x, y, s = f0(self, *a)
    return x.float(), y.float(), s
CLIP.forward = bf
r = recipes.load("emoji", sets)
T.train_clip(run, r)
