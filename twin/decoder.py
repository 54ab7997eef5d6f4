"""usage: decoder.py RUN OUT steps batch [bench]"""
import sys, time, json, os, dataclasses, shutil, threading, queue
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
from dalle_mini.training.vqgan.decoder import LENGTH
from dalle_mini.training.vqgan.train import comparison_sheet
run, out = Path(sys.argv[1]), Path(sys.argv[2]); steps, batch = map(int, sys.argv[3:5]); lr = float(sys.argv[5]) if len(sys.argv) > 5 else 1e-2
recipe = recipes.load("emoji"); world, network = T._load(run, recipe); cfg = network.config
spelling = Spelling.of(world, network, run/"spelling")
own = model.written_dim(network.params)
params = jax.tree.map(np.asarray, dict(network.params))
table = params["quantize"]["embedding"]["embedding"].astype(np.float32)
DT = torch.bfloat16 if os.environ.get("DT", "bf16") == "bf16" else torch.float32
tr = {}
for k, v in flat({n: params[n] for n in ("decoder", "post_quant_conv")}):
    v = np.asarray(v, np.float32)
    if v.ndim == 4: v = v.transpose(3, 2, 0, 1)  # out in h w
    tr[k] = torch.tensor(np.ascontiguousarray(v))
tr[("post_quant_conv", "kernel")][:, own:] *= LENGTH
code = table[:, own:]; code = code/np.linalg.norm(code, axis=1, keepdims=True)
tr[("codes",)] = torch.tensor(code)
TABLE = torch.tensor(table[:, :own])
for k in tr:
    if tr[k].ndim == 4: tr[k] = tr[k].to(memory_format=torch.channels_last)
    tr[k].requires_grad_(True)
names = list(tr)
def conv(p, x): return F.conv2d(x, p["kernel"].to(DT), p["bias"].to(DT), padding=p["kernel"].shape[-1]//2)
def gn(p, x):
    return F.group_norm(x.float(), cfg.num_groups, p["scale"], p["bias"], 1e-6)
def act(p, x): return F.silu(gn(p, x)).to(DT)
def res(p, x):
    h = conv(p["conv1"], act(p["norm1"], x)); h = conv(p["conv2"], act(p["norm2"], h))
    return (conv(p["nin_shortcut"], x) if "nin_shortcut" in p else x) + h
def attn(p, x):
    B, C, H, W = x.shape; h = gn(p["norm"], x).to(DT)
    q, k, v = (conv(p[n], h).permute(0, 2, 3, 1).reshape(B, H*W, C) for n in "qkv")
    w = torch.softmax((q @ k.mT).float()*C**-0.5, -1).to(DT)
    return x + conv(p["proj_out"], (w @ v).view(B, H, W, C).permute(0, 3, 1, 2))
def paint(P, codes):
    c = P["codes"]; c = c * torch.rsqrt((c*c).sum(-1, keepdim=True)+1e-8)
    z = F.embedding(codes, torch.cat([TABLE, c], 1)).view(len(codes), 8, 8, -1).permute(0, 3, 1, 2).to(DT)
    x = conv(P["post_quant_conv"], z); D = P["decoder"]
    x = conv(D["conv_in"], x); m = D["mid"]
    x = res(m["block_2"], attn(m["attn_1"], res(m["block_1"], x)))
    for i in reversed(range(len(cfg.ch_mult))):
        L = D[f"up_{i}"]
        for j in range(cfg.num_res_blocks+1): x = res(L[f"block_{j}"], x)
        if i: x = conv(L["upsample"]["conv"], F.interpolate(x, scale_factor=2, mode="nearest"))
    return conv(D["conv_out"], act(D["norm_out"], x)).float().permute(0, 2, 3, 1)
def loss_fn(values, codes, target):
    target = target.float()/255
    pix = paint(nest(dict(zip(names, values))), codes); e = pix - target
    loss = e.abs().mean() + 2*(e*e).mean() + 0.5*e.diff(dim=1).abs().mean() + 0.5*e.diff(dim=2).abs().mean()
    return loss, ((pix.clamp(0, 1)-target)**2).mean()
def whole():
    rest = {}
    for k, v in tr.items():
        v = v.detach().contiguous().numpy().copy()
        rest[k] = v.transpose(2, 3, 1, 0) if v.ndim == 4 else v
    c = rest.pop(("codes",)); c = c/np.sqrt((c*c).sum(-1, keepdims=True)+1e-8)
    rest[("post_quant_conv", "kernel")][:, :, own:] /= LENGTH
    return {**params, **nest(rest), "quantize": {"embedding": {"embedding": np.concatenate([table[:, :own], LENGTH*c], 1)}}}
scenes = T._held_out_scenes(world, 64)
hc, hp = spelling.codes(scenes), np.stack([world.paint(s) for s in scenes])
as_t = lambda c, p: (torch.as_tensor(np.ascontiguousarray(c)).long(), torch.as_tensor(p))
values = list(tr.values())
if steps == 0:
    with torch.no_grad(): pix = paint(nest(dict(zip(names, values))), as_t(hc, hp)[0]).clamp(0, 1).numpy()
    ref = network.decode(hc).astype(np.float32)/255
    print("max diff", np.abs(pix-ref).max(), "mean", np.abs(pix-ref).mean(), "psnr", -10*np.log10(((ref-hp/255)**2).mean())); sys.exit()
seed = 8
rng = np.random.default_rng((seed, 1)); OWN = 4000
op = np.stack([world.paint(world.draw(rng)) for _ in range(OWN)]); oc = np.concatenate([network.encode(op[i:i+250]) for i in range(0, OWN, 250)])
def make(step):
    r = np.random.default_rng((seed, 1, step)); q = batch//4
    sc = [world.full(r) if i % 3 else world.draw(r) for i in range(batch-q)]; o = r.integers(OWN, size=q)
    return np.concatenate([spelling.codes(sc), oc[o]]), np.concatenate([np.stack([world.paint(s) for s in sc]), op[o]])
def as_matrix(p): return p.permute(1, 2, 3, 0).reshape(-1, p.shape[0]) if p.ndim == 4 else p
class O2(Optim): pass
ismat = lambda k, p: p.ndim == 4 and p.shape[0] > 3
# views: permute of channels_last is contiguous-safe only for reading, so updates are made in shape
opt = Optim(tr, ismat, as_matrix, 0.99)
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
out.mkdir(parents=True, exist_ok=True); ck = out/"dec.pt"; step0 = 0
if ck.exists():
    c = torch.load(ck); step0 = c["step"]; opt.t = c["t"]
    with torch.no_grad():
        for i, k in enumerate(names): tr[k].copy_(c["p"][i]); opt.mu[k].copy_(c["mu"][i])
        for k, v in zip(opt.rest, c["nu"]): opt.nu[k].copy_(v)
    print("resumed", step0)
f = torch.compile(loss_fn, dynamic=False) if os.environ.get("COMPILE", "1") == "1" else loss_fn
def save(step):
    torch.save({"step": step, "t": opt.t, "p": [tr[k].detach() for k in names], "mu": [opt.mu[k] for k in names], "nu": [opt.nu[k] for k in opt.rest]}, str(ck)+".new"); os.replace(str(ck)+".new", ck)
def export(step):
    w = whole(); vqgan.save(out/"model"/"vqgan", cfg, w)
    comparison_sheet(w, cfg, hc[:16], hp[:16]).save(out/f"{step:06d}.png")
log = open(out/"decoder.jsonl", "a"); t0 = last = saved = time.time(); n = 0; mse = 0.; tt = [0, 0, 0, 0]
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1); nxt = pool.submit(make, step0)
for step in range(step0, steps):
    a = time.time(); b = as_t(*nxt.result()); nxt = pool.submit(make, step+1); tt[0] += time.time()-a; a = time.time()
    loss, m = f(values, *b); tt[1] += time.time()-a; a = time.time(); loss.backward(); tt[2] += time.time()-a; a = time.time()
    step_opt(rate(step, steps, lr, 50)); tt[3] += time.time()-a; mse += float(m.detach()); n += 1
    if step % 50 == 49 or step < 3:
        now = time.time(); r = {"step": step+1, "psnr": round(-10*math.log10(mse/n), 2), "pic_s": round(n*batch/(now-last), 1)}
        if step % 500 == 499:
            with torch.no_grad(): r["held"] = round(-10*math.log10(float(loss_fn(values, *as_t(hc, hp))[1])), 2)
            export(step+1)
        if "bench" in sys.argv: print([round(x/n, 3) for x in tt])
        print(r, flush=True); log.write(json.dumps(r)+"\n"); log.flush(); last = time.time(); n = 0; mse = 0.; tt = [0]*4
    if time.time()-saved > 180: save(step+1); saved = time.time()
save(steps); export(steps); print("done", time.time()-t0)
