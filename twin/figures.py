import sys; sys.path.insert(0, "tests")
import numpy as np, dataclasses
from PIL import Image
from dalle_mini import device; device.set_up()
import dalle_mini
from dalle_mini.training import recipe
from dalle_mini.training.emoji.world import World
import test_drawing_figures as F
from concurrent.futures import ThreadPoolExecutor
emoji = dalle_mini.load(); emoji.wait_until_ready() if hasattr(emoji, "wait_until_ready") else None
world = World.open(recipe.load("emoji").world(), emoji.resolution); N = 50
def grid(rows, tile=64, gap=2):
    w = len(rows[0])*(tile+gap)-gap; h = len(rows)*(tile+gap)-gap
    out = Image.new("RGB", (w, h), "white")
    for r, row in enumerate(rows):
        for c, im in enumerate(row): out.paste(im.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS) if im.size != (tile, tile) else im.convert("RGB"), (c*(tile+gap), r*(tile+gap)))
    return out
def quant(im, name): im.quantize(256, dither=Image.Dither.NONE).save(f"docs/images/{name}.png", optimize=True)
R = lambda s, d: sum(F.right(world, *p) for p in zip(s, d, strict=True))
# negative
sc = F.scenes_of(world, 2, lambda s: not s.names_background)
def all_of(i, **k): return emoji.generate(sc[i].caption, num_candidates=4, seed=i, **k)
with ThreadPoolExecutor(4) as pool:
    plain = list(pool.map(all_of, range(N))); neg = list(pool.map(lambda i: all_of(i, negative_prompt="white background"), range(N)))
print("white of all", [sum(F.is_white(c) for g in x for c in g) for x in (plain, neg)], "of best", [sum(F.is_white(g[0]) for g in x) for x in (plain, neg)], "right best", [R(sc, [g[0] for g in x]) for x in (plain, neg)], flush=True)
white = [i for i in range(N) if any(F.is_white(c) for c in plain[i])]
print("with white", len(white))
quant(grid([[next((c for c in plain[i] if F.is_white(c))).image for i in white[:12]], [min(neg[i], key=lambda c: c.index if c.index == next(d for d in plain[i] if F.is_white(d)).index else 100+c.index).image for i in white[:12]]]), "negative")
# completion
sc = F.scenes_of(world, 1, F.side_by_side, held="pair"); halves = [F.half(world, s) for s in sc]
best = F.drawn(emoji, sc, 9, start=halves, keep=[F.LEFT]*N); first = F.drawn(emoji, sc, 1, start=halves, keep=[F.LEFT]*N); four = F.drawn(emoji, sc, 4, start=halves, keep=[F.LEFT]*N)
print("completion best9, first, best4", R(sc, best), R(sc, first), R(sc, four), flush=True)
def gray(im):
    a = np.asarray(im.convert("RGB")).copy(); a[:, 32:] = 225; return Image.fromarray(a)
quant(grid([[gray(h) for h in halves[:12]], [c.image for c in best[:12]]]), "completion")
# variations
sc = F.scenes_of(world, 5, lambda s: True); f = F.drawn(emoji, sc, 1); rows = [[c.image for c in f[:8]]]
for st in (0.1, 0.25, 0.5, 0.75, 1.0):
    v = F.drawn(emoji, sc, 1, strength=[st]*N, start=f, seed=range(1000, 1000+N))
    eq = np.mean([a.codes == b.codes for a, b in zip(v, f)]); same = sum(bool((np.asarray(a.codes) == np.asarray(b.codes)).all()) for a, b in zip(v, f))
    print("vary", st, "equal", round(100*float(eq), 1), "right", R(sc, v), "unchanged", same, flush=True); rows.append([c.image for c in v[:8]])
print("first right", R(sc, f)); quant(grid(rows), "vary")
# seamless
sc = F.scenes_of(world, 6, lambda s: True); pl = F.drawn(emoji, sc); se = F.drawn(emoji, sc, seamless=["both"]*N)
for n, d in (("plain", pl), ("seamless", se)):
    a = np.stack([np.asarray(c.image, float) for c in d]); print(n, [(round(float(np.abs(np.take(a, 0, x)-np.take(a, -1, x)).mean()), 1), round(float(np.abs(np.diff(a, axis=x)).mean()), 1)) for x in (2, 1)])
def tiled(im): a = np.asarray(im.convert("RGB")); return Image.fromarray(np.tile(a, (3, 3, 1)))
sel = [0, 1, 2, 3]; quant(grid([[tiled(pl[i].image) for i in sel], [tiled(se[i].image) for i in sel]], tile=192, gap=4), "seamless")
emoji.close()
