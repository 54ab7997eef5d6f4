"""usage: FIRST=66 curve.py RUN(from) OUT steps batch examples [seed]"""
import sys, time, json, os, dataclasses, shutil
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from common import *
from dalle_mini import device; device.set_up()
import jax
from dalle_mini.training import recipe as recipes
from dalle_mini.training.tasks import from_emoji as T
from dalle_mini.training.run_tokenizer import load_tokenizer
from dalle_mini.training.emoji.spelling import Spelling
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.checkpoint import load_params, save_model
from dalle_mini.vocabulary import Vocabulary
BF = torch.bfloat16
seed_ = int(sys.argv[6]); run, out = Path(sys.argv[1]), Path(sys.argv[2]); steps, batch, count = map(int, sys.argv[3:6]); seed = int(sys.argv[6])
peak = float(sys.argv[7]) if len(sys.argv) > 7 else 2e-2
first = int(os.environ["FIRST"])
recipe = recipes.load("emoji", [f"world.first={first}"])
world, network = T._load(run, recipe)
sizes = recipe.dalle(vqgan=network.config)
reader = load_tokenizer(run/"model"/"dalle", sizes)
sizes = dataclasses.replace(sizes, encoder_vocab_size=reader.vocab_size)
H, D = sizes.decoder_attention_heads, sizes.d_model

def lin(x, w): return x @ w
def ln(x, p): return F.layer_norm(x, (x.shape[-1],), p.get("scale"), p["bias"], 1e-5)
def heads(x): return x.view(x.shape[0], x.shape[1], H, -1).transpose(1, 2)
def attend(p, h, src, mask=None, causal=False):
    q, k, v = heads(lin(h, p["q_proj"]["kernel"])), heads(lin(src, p["k_proj"]["kernel"])), heads(lin(src, p["v_proj"]["kernel"]))
    w = (q @ k.transpose(2, 3)) * 32**-0.5
    w = w + (CAUSAL if causal else mask)
    o = torch.softmax(w, -1) @ v
    return lin(o.transpose(1, 2).reshape(h.shape), p["out_proj"]["kernel"])
def glu(p, x):
    x = ln(x, p["pre_norm"]).to(DT)
    g = F.gelu(lin(x, p["gate_proj"]["kernel"])) * lin(x, p["up_proj"]["kernel"])
    return lin(ln(g.float(), p["mid_norm"]).to(DT), p["down_proj"]["kernel"])
def embed(p, ids): return ln(p["ids"]["embedding"][ids] + p["positions"]["embedding"][:ids.shape[1]], p["norm"])
def loss_fn(P, tokens, mask, codes_in, codes):
    E, Dc = P["encoder"], P["decoder"]
    bias = torch.where(mask > 0, 0.0, -1e30).to(DT)[:, None, None, :]
    x = embed(E["embed"], tokens)
    for i in range(sizes.encoder_layers):
        p = E[f"layers_{i}"]
        h = ln(x, p["self_pre_norm"]).to(DT)
        x = x + ln(attend(p["self_attention"], h, h, bias).float(), p["self_post_norm"])
        x = x + glu(p["glu"], x)
    s = ln(x, E["final_norm"]).to(DT)
    x = embed(Dc["embed"], codes_in)
    for i in range(sizes.decoder_layers):
        p = Dc[f"layers_{i}"]
        h = ln(x, p["self_pre_norm"]).to(DT)
        x = x + ln(attend(p["self_attention"], h, h, causal=True).float(), p["self_post_norm"])
        h = ln(x, p["cross_pre_norm"]).to(DT)
        x = x + ln(attend(p["cross_attention"], h, s, bias).float(), p["cross_post_norm"])
        x = x + glu(p["glu"], x)
    logits = lin(ln(x, Dc["final_norm"]).to(DT), Dc["lm_head"]["kernel"]).float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), codes.reshape(-1))
DT = BF
CAUSAL = torch.full((64, 64), -1e30).triu(1).to(BF)
def cast(leaves, dt):
    return nest({k: (v.to(dt) if k[-1] == "kernel" else v) for k, v in leaves.items()})
from dalle_mini.model import init_params
start = jax.jit(lambda: init_params(sizes, jax.random.key(seed_)))()
leaves = {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in flat(start)}
names = list(leaves)
def f(values, tokens, mask, codes_in, codes):
    return loss_fn(cast(dict(zip(names, values)), DT), tokens, mask, codes_in, codes)
spelling = Spelling.of(world, network, Path("runs/curves/spelling"))
held = T._held_out_scenes(world, 500)
hx = Examples.of([s.caption for s in held], spelling.codes(held), reader)
def put(tokens, mask, codes):
    n = 28
    ci = np.concatenate([np.full((len(codes), 1), sizes.bos_code, codes.dtype), codes[:, :-1]], 1)
    return [torch.as_tensor(np.ascontiguousarray(a)).long() for a in (tokens[:, :n], mask[:, :n], ci, codes)]
hb = put(hx.tokens[:256], hx.mask[:256], hx.codes[:256])
if steps == 0:  # parity with JAX
    from dalle_mini.training.dalle.loss import row_losses, Batch
    B = Batch(hx.tokens[:256], hx.mask[:256], hx.codes[:256])
    print("jax f32", float(jax.jit(lambda p: row_losses(p, dataclasses.replace(sizes, dtype="float32"), B).mean())(start)))
    for DT in (torch.float32, BF): print("torch", DT, float(f(list(leaves.values()), *hb)))
    sys.exit()
rng = np.random.default_rng(seed)
cache = out/f"ex{count}_{seed}.npz"; out.mkdir(parents=True, exist_ok=True)
if cache.exists(): z = np.load(cache); tok, msk, cod = z["t"], z["m"], z["c"]
else:
    t = time.time(); captions, cod = T._examples(world, spelling, rng, count)
    ex = Examples.of(captions, cod, reader); tok, msk = ex.tokens, ex.mask
    tok, msk, cod = tok.astype(np.int16), msk.astype(np.int8), cod.astype(np.int16); np.savez(cache, t=tok, m=msk, c=cod); print("examples", time.time()-t, flush=True)
empty = reader.encode_batch([""])
if os.environ.get("INIT"):
    c = torch.load(os.environ["INIT"])
    with torch.no_grad():
        for i, k in enumerate(names): leaves[k].copy_(c["p"][i])
    del c
opt = Optim(leaves, lambda k, p: p.ndim == 2 and k[1].startswith("layers_"), lambda p: p, 0.999)
step0 = 0; ck = out/"twin.pt"
if ck.exists():
    c = torch.load(ck); step0 = c["step"]; opt.t = c["t"]
    with torch.no_grad():
        for i, k in enumerate(names): leaves[k].copy_(c["p"][i]); opt.mu[k].copy_(c["mu"][i])
        for k, v in zip(opt.rest, c["nu"]): opt.nu[k].copy_(v)
    print("resumed", step0)
g = torch.compile(f, dynamic=False) if os.environ.get("COMPILE", "1") == "1" else f
out.mkdir(parents=True, exist_ok=True)
def export():
    tree = nest({k: v.detach().numpy().copy() for k, v in leaves.items()})
    d = out/f"step{step+1:05d}"/"dalle"
    if not d.exists(): shutil.copytree(run/"model"/"dalle", d)
    save_model(d, sizes, tree, dtype="float16")
def save(step):
    torch.save({"step": step, "t": opt.t, "p": [leaves[k].detach() for k in names], "mu": [opt.mu[k] for k in names], "nu": [opt.nu[k] for k in opt.rest]}, str(ck)+".new"); os.replace(str(ck)+".new", ck)
log = open(out/"metrics.jsonl", "a"); t0 = time.time(); last = t0; saved = t0; tot = 0.; n = 0
values = [leaves[k] for k in names]
for step in range(step0, steps):
    r = np.random.default_rng((seed, step)); rows = r.integers(len(cod), size=batch); drop = r.random((batch, 1)) < 0.1
    b = put(np.where(drop, empty[0], tok[rows]), np.where(drop, empty[1], msk[rows]), cod[rows])
    loss = g(values, *b); loss.backward()
    gn = opt.step(rate(step, steps, peak, 50)); tot += float(loss.detach()); n += 1
    if step % 50 == 49 or step < 3:
        now = time.time(); m = {"step": step+1, "loss": round(tot/n, 4), "gn": round(gn, 2), "ex_s": round(n*batch/(now-last), 1)}
        if step % 500 == 499 or step == 249:
            with torch.no_grad(): m["val"] = round(float(f(values, *hb)), 4)
            export()
        print(m, flush=True); log.write(json.dumps(m)+"\n"); log.flush(); last = time.time(); tot = 0.; n = 0
    if time.time()-saved > 180: save(step+1); saved = time.time()
save(steps); print("done", time.time()-t0)
