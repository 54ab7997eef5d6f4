"""codejudge.py MODEL_FOLDER(with dalle) [cs temp ...]: first drawings judged by codes"""
import sys, dataclasses, time, json
from pathlib import Path
import numpy as np
from dalle_mini import device; device.set_up()
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dalle_mini.training import recipe as recipes
from dalle_mini.training.tasks import from_emoji as T
from dalle_mini.training.run_tokenizer import load_tokenizer
from dalle_mini.training.emoji.spelling import Spelling
from dalle_mini.training.emoji.world import COLOURS
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.dalle.draw import draw
from dalle_mini.checkpoint import load_params
from dalle_mini.config import ModelConfig
run = Path(sys.argv[1]); n = int(sys.argv[2])
import os
recipe = recipes.load("emoji", [f"world.first={os.environ['FIRST']}"]); world, network = T._load(Path("runs/v3"), recipe)
spelling = Spelling.of(world, network, Path("runs/curves/spelling"))
sizes = ModelConfig.from_dict(json.loads((run/"dalle/config.json").read_text())) if hasattr(ModelConfig, "from_dict") else None
reader = load_tokenizer(run/"dalle", sizes)
rng = np.random.default_rng(12345)
scenes = [world.draw_held(rng) for _ in range(n)] + [world.bare(x) for x in world.names[:100]]
def allowed(s):
    out = []
    for sp in (s.sprites, *s.others):
        for st in ([s.style] if s.names_style else world.styles):
            for bg in ([s.background] if s.names_background else COLOURS): out.append(dataclasses.replace(s, sprites=sp, style=st, background=bg, others=()))
    return out
ref = [spelling.codes(allowed(s)) for s in scenes]
ex = Examples.of([s.caption for s in scenes], np.zeros((len(scenes), 64), np.int32), reader)
mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
pairs = [(1.2, 0.7)]
for folder in sys.argv[3:]:
    params = jax.device_put(load_params(Path(folder)/"dalle", sizes, dtype="float32"), NamedSharding(mesh, PartitionSpec()))
    for cs, temp in pairs:
        z = dataclasses.replace(sizes, sampling=dataclasses.replace(sizes.sampling, condition_scale=cs, temperature=temp)); t = time.time(); got = []
        for i in range(0, len(scenes), 100): got.append(draw(params, z, ex._replace(tokens=ex.tokens[i:i+100], mask=ex.mask[i:i+100], codes=ex.codes[i:i+100])))
        got = np.concatenate(got); best = np.array([(r == g).mean(1).max() for r, g in zip(ref, got)])
        res = {}
        for s, b in zip(scenes, best): res.setdefault(s.kind, []).append(b)
        print(folder, {k: (round(100*np.mean(np.array(v) >= .9)), len(v)) for k, v in sorted(res.items())}, "all", round(100*np.mean(best >= .9), 1), "exact", round(100*np.mean(best == 1), 1), "codes", round(100*best.mean(), 1), round(time.time()-t), flush=True)