src=open("twin/errors.py").read()
a=src.index("rng=np.random"); b=src.index("ex=Examples.of")
src=src[:a]+"""rng=np.random.default_rng(12345)
from dalle_mini.training.emoji.world import _held_in, ROWS
scenes=[world.draw_held(rng) for _ in range(200)]
"""+src[b:]
c=src.index("blocks={b:c"); exec(src[:c])
C=Counter(); out=[]
per={4:None}
B={}
for k,v in spelling.blocks.items(): B.setdefault(k[-1],[]).append((k,v))
def near(area):
    ks=B[len(area)]; m=[float(((v==area)|(v==-1)).mean()) for _,v in ks]; i=int(np.argmax(m)); return ks[i][0][0],ks[i][0][1],round(m[i],2)
gname={v:k for k,v in spelling.grounds.items()}
for s,g in zip(scenes,got):
    h=",".join(sorted(_held_in(s))); best=None
    for sp in (s.sprites,*s.others):
        f=[near(g[a.row:a.row+a.size,a.column:a.column+a.size]) for a in sp]
        n=sum(x[0]==a.name and x[2]>=.9 for x,a in zip(f,sp))
        if best is None or n>best[0]: best=(n,f,sp)
    n,f,sp=best
    cells=np.ones((8,8),bool)
    for a in sp: cells[a.row:a.row+a.size,a.column:a.column+a.size]=False
    rest={gname.get(int(x),"?") for x in g[cells]} 
    counts=Counter(gname.get(int(x)) for x in g.ravel()); counts.pop(None,None); bg=counts.most_common(1)[0][0] if counts else "-"
    faults=[]
    if n<len(sp): faults.append("objects")
    if len(rest)>1 or "?" in rest: faults.append("rest")
    if s.names_background and bg!=s.background: faults.append("background")
    if s.names_style and any(x[1]!=s.style for x in f): faults.append("style")
    C[(h,s.kind,"+".join(faults) or "right")]+=1
    if faults: out.append((h,faults,s.caption,[x for x in f],bg))
for k,v in sorted(C.items()): print(k,v)
for e in out[:60]: print(e)
