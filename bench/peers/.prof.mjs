import { HEADS, LN_EPS, loadWork, serve } from "./lib.mjs";

const EMB = process.env.EMB ?? "gather", CE = process.env.CE ?? "gather", SYNC = process.env.SYNC === "1";
const [work, threads, weights] = process.argv.slice(2);
const { jit, nn, numpy: np, tree, valueAndGrad, blockUntilReady, defaultDevice } = await import("@jax-js/jax");
defaultDevice("wasm");
const { params: raw, inputs, targets, batch, time, vocab, dim, layers } = loadWork(weights);
const N = batch * time;
const params = {};
for (const [name, { shape, data }] of Object.entries(raw)) params[name] = np.array(data, { shape });
const x = np.array(inputs), y = np.array(targets);

function loss(p, x, y) {
  const uses = new Map();
  const get = (k) => p[k].ref;
  const norm = (h, name) => {
    const mean = h.ref.mean(-1, { keepdims: true });
    const c = h.sub(mean);
    const v = np.square(c.ref).mean(-1, { keepdims: true });
    return c.mul(np.reciprocal(np.sqrt(v.add(LN_EPS)))).mul(get(name + ".weight")).add(get(name + ".bias"));
  };
  const linear = (h, name) => np.matmul(h, get(name + ".weight")).add(get(name + ".bias"));
  let emb;
  if (EMB === "gather") emb = np.take(get("wte.weight"), x, 0);
  else emb = np.matmul(np.where(x.reshape([N, 1]).equal(np.arange(vocab)), 1, 0).astype(np.float32), get("wte.weight"));
  let h = process.env.POS==="tile" ? emb.add(np.tile(get("wpe.weight"), [batch, 1])) : emb.reshape([batch, time, dim]).add(get("wpe.weight")).reshape([N, dim]);
  for (let l = 0; l < layers; l++) {
    const qkv = linear(norm(h.ref, `h.${l}.ln_1`), `h.${l}.attn.c_attn`);
    let a;
    if (process.env.ATT === "sdpa") {
      const [q, k, v] = np.split(qkv.reshape([batch, time, 3 * HEADS, dim / HEADS]), 3, 2);
      a = nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([N, dim]);
    } else {
      const [q, k, v] = np.split(qkv.reshape([batch, time, 3 * HEADS, dim / HEADS]).transpose([0, 2, 1, 3]), 3, 1);
      let s = np.matmul(q, k.transpose([0, 1, 3, 2])).mul(1 / Math.sqrt(dim / HEADS));
      s = np.where(np.tri(time, time, 0, { dtype: np.bool }), s, -1e9);
      a = np.matmul(nn.softmax(s, -1), v).transpose([0, 2, 1, 3]).reshape([N, dim]);
    }
    h = h.add(linear(a, `h.${l}.attn.c_proj`));
    const f = nn.gelu(linear(norm(h.ref, `h.${l}.ln_2`), `h.${l}.mlp.c_fc`));
    h = h.add(linear(f, `h.${l}.mlp.c_proj`));
  }
  const logits = np.matmul(norm(h, "ln_f"), get("wte.weight").transpose());
  let picked;
  const max = logits.ref;
  const lse = nn.logsumexp(logits.ref, -1);
  if (CE === "gather") picked = np.takeAlongAxis(logits, y.reshape([N, 1]), 1).reshape([N]);
  else picked = np.where(y.reshape([N, 1]).equal(np.arange(vocab)), logits, 0).sum(-1);
  max.dispose();
  tree.dispose(p);
  return lse.sub(picked).mean();
}
const step = jit(valueAndGrad(loss));

const { profiler } = await import("@jax-js/jax");
const run = async () => { const t=performance.now(); const [l,g]=step(tree.ref(params), x.ref, y.ref); const t1=performance.now(); await blockUntilReady([l,g]); l.dispose(); tree.dispose(g); return [performance.now()-t, t1-t]; };
for (let i=0;i<4;i++) console.log(await run());
profiler.startTrace();
console.log(await run());
profiler.stopTrace();
const ms=performance.getEntriesByType("measure");
const by=new Map();
for(const m of ms){ const p=Object.fromEntries(m.detail.devtools.properties); const k=m.name+" "+(p.reduction??p.inputShapes??"")+" "+(p.exp??"").slice(0,+(process.env.W??250)); const e=by.get(k)??{n:0,t:0}; e.n++; e.t+=m.duration; by.set(k,e);}
console.log("kernels",ms.length,"total",ms.reduce((a,m)=>a+m.duration,0));
for(const [k,e] of [...by].sort((a,b)=>b[1].t-a[1].t).slice(0,30)) console.log(e.t.toFixed(1),e.n,k);
process.exit(0);
