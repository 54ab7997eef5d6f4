"""usage: encoder.py RUN OUT steps batch lr scale   (LEN: initial length factor; NORM=1: unit latents)"""
import sys, time, json, os, shutil, dataclasses
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from common import *
from dalle_mini import device; device.set_up()
import jax, jax.numpy as jnp
import vqgan
from vqgan import model
from dalle_mini.training import recipe as recipes
from dalle_mini.training.tasks import from_emoji as T
from dalle_mini.training.emoji.spelling import Spelling
run, out = Path(sys.argv[1]), Path(sys.argv[2]); steps, batch = map(int, sys.argv[3:5]); lr, scale = map(float, sys.argv[5:7])
NORM = os.environ.get("NORM") == "1"
recipe = recipes.load("emoji"); world, network = T._load(run, recipe); cfg = network.config
spelling = Spelling.of(world, network, run/"spelling")
own = model.written_dim(network.params)
params = jax.tree.map(np.asarray, dict(network.params))
TABLE = torch.tensor(params["quantize"]["embedding"]["embedding"][:, :own].astype(np.float32))
DT = torch.bfloat16 if os.environ.get("DT", "bf16") == "bf16" else torch.float32
tr = {}
for k, v in flat({n: params[n] for n in ("encoder", "quant_conv")}):
    v = np.asarray(v, np.float32)
    if k[0] == "quant_conv": v = v[..., :own]
    if v.ndim == 4: v = v.transpose(3, 2, 0, 1)
    tr[k] = torch.tensor(np.ascontiguousarray(v))
for k in tr:
    if tr[k].ndim == 4: tr[k] = tr[k].to(memory_format=torch.channels_last)
    tr[k].requires_grad_(True)
names = list(tr)
def conv(p, x): return F.conv2d(x, p["kernel"].to(DT), p["bias"].to(DT), padding=p["kernel"].shape[-1]//2)
def gn(p, x): return F.group_norm(x.float(), cfg.num_groups, p["scale"], p["bias"], 1e-6)
def act(p, x): return F.silu(gn(p, x)).to(DT)
def res(p, x):
    h = conv(p["conv1"], act(p["norm1"], x)); h = conv(p["conv2"], act(p["norm2"], h))
    return (conv(p["nin_shortcut"], x) if "nin_shortcut" in p else x) + h
def attn(p, x):
    B, C, H, W = x.shape; h = gn(p["norm"], x).to(DT)
    q, k, v = (conv(p[n], h).permute(0, 2, 3, 1).reshape(B, H*W, C) for n in "qkv")
    w = torch.softmax((q @ k.mT).float()*C**-0.5, -1).to(DT)
    return x + conv(p["proj_out"], (w @ v).view(B, H, W, C).permute(0, 3, 1, 2))
def latents(P, x):
    E = P["encoder"]; x = conv(E["conv_in"], x.permute(0, 3, 1, 2).to(DT))
    last = len(cfg.ch_mult)-1
    for i in range(last+1):
        L = E[f"down_{i}"]
        for j in range(cfg.num_res_blocks): x = res(L[f"block_{j}"], x)
        if i < last: x = F.conv2d(F.pad(x, (0, 1, 0, 1)), L["downsample"]["conv"]["kernel"].to(DT), L["downsample"]["conv"]["bias"].to(DT), stride=2)
    m = E["mid"]; x = res(m["block_2"], attn(m["attn_1"], res(m["block_1"], x)))
    h = F.silu(gn(E["norm_out"], x)).to(DT); h = conv(E["conv_out"], h).float()
    q = P["quant_conv"]
    return F.conv2d(h, q["kernel"], q["bias"]).permute(0, 2, 3, 1)  # f32
def loss_fn(values, codes, pixels):
    z = latents(nest(dict(zip(names, values))), pixels.float()/255)
    if NORM: z = z*torch.rsqrt((z*z).sum(-1, keepdim=True)+1e-8)
    lg = (scale*z).reshape(-1, own) @ TABLE.T; c = codes.reshape(-1)
    l = F.cross_entropy(lg, c)
    return l, (lg.argmax(-1) == c).float().mean()
def whole():
    rest = {}
    for k, v in tr.items():
        v = v.detach().contiguous().numpy().copy()
        rest[k] = v.transpose(2, 3, 1, 0) if v.ndim == 4 else v
    t = nest(rest)
    t["quant_conv"] = {k: np.pad(v, [(0, 0)]*(v.ndim-1)+[(0, cfg.embed_dim-own)]) for k, v in t["quant_conv"].items()}
    return {**params, **t}
scenes = T._held_out_scenes(world, 200)
hc, hp = spelling.codes(scenes), np.stack([world.paint(s) for s in scenes])
as_t = lambda c, p: (torch.as_tensor(np.ascontiguousarray(c)).long(), torch.as_tensor(p))
values = list(tr.values())
if steps == 0:
    with torch.no_grad(): z = latents(nest(dict(zip(names, values))), as_t(hc, hp)[1][:32].float()/255).numpy()
    ref = np.asarray(model.latents(network.params, cfg, jnp.asarray(hp[:32], jnp.float32)/255))[..., :own]
    print("diff", np.abs(z-ref).max(), np.abs(ref).mean(), "len", np.linalg.norm(ref, axis=-1).mean())
    cos = ((ref/np.linalg.norm(ref, axis=-1, keepdims=True)).reshape(-1, own)*TABLE.numpy()[hc[:32].ravel()]).sum(-1)
    print("cos to target", np.percentile(cos, [5, 25, 50, 75, 95])); sys.exit()
seed = int(os.environ.get('SEED', 8))
def strange(px, r):  # somebody else's picture: not on the grid, not in the world's colours
    px = np.roll(px, r.integers(64, size=2), (0, 1))
    if r.random() < .5: px = px[:, ::-1]
    return (px*r.uniform(.5, 1, 3)).astype(np.uint8)
pr = np.random.default_rng((seed, 3)); POOL = int(os.environ.get("POOL", 8000)); Q = batch//4
pp = np.stack([strange(world.paint(world.full(pr) if i % 2 else world.draw(pr)), pr) for i in range(POOL)])
pc = np.concatenate([network.encode(pp[i:i+250]) for i in range(0, POOL, 250)]); print("pool", flush=True)
xr = np.random.default_rng(77); xp = np.stack([strange(world.paint(world.draw(xr)), xr) for i in range(200)]); xc = network.encode(xp)
def make(step):
    r = np.random.default_rng((seed, 2, step)); c, p = make_own(r, step); o = r.integers(POOL, size=Q)
    return np.concatenate([c[Q:], pc[o]]), np.concatenate([p[Q:], pp[o]])
def make_own(r, step):
    sc = [world.full(r) if i % 2 else world.draw(r) for i in range(batch)]
    sc = [dataclasses.replace(s, sprites=(s.sprites[int(r.integers(len(s.sprites)))],)) if i % 4 == 0 else s for i, s in enumerate(sc)]
    return spelling.codes(sc), np.stack([world.paint(s) for s in sc])
def as_matrix(p): return p.permute(1, 2, 3, 0).reshape(-1, p.shape[0]) if p.ndim == 4 else p
opt = Optim(tr, lambda k, p: p.ndim == 4 and p.shape[0] > 3, as_matrix, 0.99)
def step_opt(lr, clip=1.0):
    opt.t += 1; P = opt.params; g = {k: p.grad for k, p in P.items()}
    with torch.no_grad():
        norm = float(torch.stack(torch._foreach_norm(list(g.values()))).norm()); torch._foreach_mul_(list(g.values()), min(1.0, clip/(norm+1e-12)))
        for shape, keys in opt.mats.items():
            for k in keys: opt.mu[k].mul_(0.95).add_(g[k], alpha=0.05)
            st = torch.stack([as_matrix(0.95*opt.mu[k]+0.05*g[k]) for k in keys]); t_ = shape[0] > shape[1]
            o = orthogonal(st.mT.contiguous() if t_ else st); o = o.mT if t_ else o
            o = o*(-lr*math.sqrt(max(1, shape[1]/shape[0])))
            for k, u in zip(keys, o):
                p = P[k]; p.add_(u.reshape(p.shape[1], p.shape[2], p.shape[3], p.shape[0]).permute(3, 0, 1, 2))
        r = opt.rest; mu = [opt.mu[k] for k in r]; nu = [opt.nu[k] for k in r]; gs = [g[k] for k in r]
        torch._foreach_mul_(mu, 0.9); torch._foreach_add_(mu, gs, alpha=0.1)
        torch._foreach_mul_(nu, opt.b2); torch._foreach_addcmul_(nu, gs, gs, 1-opt.b2)
        d = torch._foreach_div(nu, 1-opt.b2**opt.t); torch._foreach_sqrt_(d); torch._foreach_add_(d, 1e-8)
        torch._foreach_addcdiv_([P[k] for k in r], mu, d, value=-lr/10/(1-0.9**opt.t))
        for p in P.values(): p.grad = None
    return norm
out.mkdir(parents=True, exist_ok=True); ck = out/"enc.pt"; step0 = 0
if ck.exists():
    c = torch.load(ck); step0 = c["step"]; opt.t = c["t"]
    with torch.no_grad():
        for i, k in enumerate(names): tr[k].copy_(c["p"][i]); opt.mu[k].copy_(c["mu"][i])
        for k, v in zip(opt.rest, c["nu"]): opt.nu[k].copy_(v)
    print("resumed", step0)
elif "INIT" in os.environ:
    c = torch.load(os.environ["INIT"])
    with torch.no_grad():
        for i, k in enumerate(names): tr[k].copy_(c["p"][i])
elif "LEN" in os.environ:
    with torch.no_grad():
        for k in tr:
            if k[0] == "quant_conv": tr[k].mul_(float(os.environ["LEN"]))
f = torch.compile(loss_fn, dynamic=False) if os.environ.get("COMPILE", "1") == "1" else loss_fn
def save(step):
    torch.save({"step": step, "t": opt.t, "p": [tr[k].detach() for k in names], "mu": [opt.mu[k] for k in names], "nu": [opt.nu[k] for k in opt.rest]}, str(ck)+".new"); os.replace(str(ck)+".new", ck)
def export(): vqgan.save(out/"model"/"vqgan", cfg, whole())
log = open(out/"encoder.jsonl", "a"); t0 = last = saved = time.time(); n = 0; tot = np.zeros(3)
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1); nxt = pool.submit(make, step0)
for step in range(step0, steps):
    b = as_t(*nxt.result()); nxt = pool.submit(make, step+1)
    loss, a = f(values, *b); loss.backward(); gnm = step_opt(rate(step, steps, lr, 50)); tot += float(loss.detach()), float(a), gnm; n += 1
    if step % 50 == 49 or step < 2:
        now = time.time(); r = {"step": step+1, "loss": round(tot[0]/n, 3), "equal": round(tot[1]/n, 4), "gn": round(tot[2]/n, 2), "pic_s": round(n*batch/(now-last), 1)}
        if step % 500 == 499 or step == steps-1:
            with torch.no_grad(): l, a = loss_fn(values, *as_t(hc, hp)); r["held"] = round(float(l), 3), round(float(a), 4), round(float(loss_fn(values, *as_t(xc, xp))[1]), 4)
            export()
        print(r, flush=True); log.write(json.dumps(r)+"\n"); log.flush(); last = time.time(); n = 0; tot = np.zeros(3)
    if time.time()-saved > 180: save(step+1); saved = time.time()
save(steps); print("done", time.time()-t0)
