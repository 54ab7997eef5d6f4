import sys
sys.argv=["x",sys.argv[1],"0"]
src=open("twin/codejudge.py").read().split("rng = np.random.default_rng(12345)")[0]
exec(src)
from collections import Counter
rng=np.random.default_rng(99)
scenes=[]
while len(scenes)<200:
    s=world.draw(rng, held="pair") if len(scenes)%2 else world.draw(rng)
    if s.kind in ("pair","count"): scenes.append(s)
ex=Examples.of([s.caption for s in scenes],np.zeros((len(scenes),64),np.int32),reader)
z=dataclasses.replace(sizes,sampling=dataclasses.replace(sizes.sampling,condition_scale=1.0,temperature=0.5))
got=np.concatenate([draw(params,z,ex._replace(tokens=ex.tokens[i:i+100],mask=ex.mask[i:i+100],codes=ex.codes[i:i+100])) for i in range(0,200,100)]).reshape(-1,8,8)
blocks={b:c for b,c in spelling.blocks.items() if b[-1]==4}
keys=list(blocks); arr=np.stack([blocks[k] for k in keys])
def nearest(area):
    m=(arr==area)|(arr==-1); s=m.mean((1,2)); i=int(s.argmax()); return keys[i][0],keys[i][1],s[i]
C=Counter(); ex_=[]
for s,g in zip(scenes,got):
    best=None
    for sp in (s.sprites,*s.others):
        found=[nearest(g[a.row:a.row+4,a.column:a.column+4]) for a in sp]
        ok=[f[0]==a.name and f[2]>=.9 for f,a in zip(found,sp)]
        t=(sum(ok),found,sp)
        if best is None or t[0]>best[0]: best=t
    n,found,sp=best; held="held" if any(True for _ in [0]) and s.kind=="pair" and __import__("dalle_mini.training.emoji.scene",fromlist=["x"]).held_out("pair",*[a.name for a in s.sprites]) else "seen"
    if n==len(sp): C[(s.kind,held,"right")]+=1; continue
    names=[a.name for a in sp]; fn=[f[0] for f in found]; q=[round(float(f[2]),2) for f in found]
    st={f[1] for f in found}
    if sorted(fn)==sorted(names) and fn!=names: kind="swapped"
    elif sorted(fn)==sorted(names): kind="blurred"
    elif min(q)>=.9: kind="other object"
    else: kind="garbled other"
    C[(s.kind,held,kind)]+=1; ex_.append((s.kind,held,kind,s.caption,fn,q,len(st)))
for k,v in sorted(C.items()): print(k,v)
for e in ex_[:45]: print(e)
