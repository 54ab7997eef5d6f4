import math, torch
def flat(tree, prefix=()):
    for k, v in tree.items():
        if isinstance(v, dict): yield from flat(v, prefix+(k,))
        else: yield prefix+(k,), v
def nest(leaves):
    out = {}
    for path, v in leaves.items():
        d = out
        for k in path[:-1]: d = d.setdefault(k, {})
        d[path[-1]] = v
    return out
def rate(step, steps, peak, warm):
    warm = min(warm, steps//2)
    if step < warm: return peak*step/warm
    return peak*0.5*(1+math.cos(math.pi*(step-warm)/(steps-warm)))
@torch.no_grad()
def orthogonal(x):  # [M, r, c], r <= c
    x = x / (x.norm(dim=(1,2), keepdim=True)+1e-8)
    x = x.bfloat16()
    a_, b_, c_ = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        a = x @ x.mT
        b = b_*a + c_*(a@a)
        x = a_*x + b@x
    return x.float()
class Optim:
    """matrices: {path: (param, to_matrix, from_matrix)} with matrix [fan_in, fan_out]"""
    def __init__(self, params, is_matrix, as_matrix, b2):
        self.params, self.b2, self.t = params, b2, 0
        self.mats = {}
        for k, p in params.items():
            if is_matrix(k, p):
                m = as_matrix(p); shape = tuple(m.shape)
                self.mats.setdefault(shape, []).append(k)
        self.as_matrix = as_matrix
        self.matkeys = {k for v in self.mats.values() for k in v}
        self.rest = [k for k in params if k not in self.matkeys]
        self.mu = {k: torch.zeros_like(p) for k, p in params.items()}
        self.nu = {k: torch.zeros_like(params[k]) for k in self.rest}
    @torch.no_grad()
    def step(self, lr, clip=1.0):
        self.t += 1
        P = self.params
        g = {k: p.grad for k, p in P.items()}
        norm = torch.stack(torch._foreach_norm(list(g.values()))).norm()
        s = float(min(1.0, clip/(float(norm)+1e-12)))
        torch._foreach_mul_(list(g.values()), s)
        for shape, keys in self.mats.items():
            mus = [self.mu[k] for k in keys]; gs = [g[k] for k in keys]
            torch._foreach_mul_(mus, 0.95); torch._foreach_add_(mus, gs, alpha=0.05)
            stack = torch.stack([self.as_matrix(0.95*m+0.05*gg) for m, gg in zip(mus, gs)])
            tr = shape[0] > shape[1]
            o = orthogonal(stack.mT.contiguous() if tr else stack)
            if tr: o = o.mT
            o = o*(-lr*math.sqrt(max(1, shape[1]/shape[0])))
            for k, u in zip(keys, o): self.as_matrix(P[k]).add_(u)
        r = self.rest
        mu = [self.mu[k] for k in r]; nu = [self.nu[k] for k in r]; gs = [g[k] for k in r]
        torch._foreach_mul_(mu, 0.9); torch._foreach_add_(mu, gs, alpha=0.1)
        torch._foreach_mul_(nu, self.b2); torch._foreach_addcmul_(nu, gs, gs, 1-self.b2)
        d = torch._foreach_div(nu, 1-self.b2**self.t); torch._foreach_sqrt_(d); torch._foreach_add_(d, 1e-8)
        torch._foreach_addcdiv_([P[k] for k in r], mu, d, value=-lr/10/(1-0.9**self.t))
        for p in P.values(): p.grad = None
        return float(norm)
