// jax-js peer: loss and all gradients of the tiny GPT, by valueAndGrad under jit, wasm backend.
//   gpt-fwdbwd          as shipped. jax-js threads itself only where a global `Worker` exists; Node
//                       has none, so this is one thread whatever <threads> says.
//   gpt-fwdbwd-workers  the same with a `Worker` over node:worker_threads supplied by us
//                       (node-web-worker.mjs), which gives jax-js its own pool of <threads> threads.
import { HEADS, LN_EPS, loadWork, packageVersion, serve } from "./lib.mjs";
import { installWebWorker } from "./node-web-worker.mjs";

const [work, threadsArg, weights] = process.argv.slice(2);
if (!["gpt-fwdbwd", "gpt-fwdbwd-workers"].includes(work)) throw new Error(`unknown work: ${work}`);
const workers = work === "gpt-fwdbwd-workers";
if (workers) installWebWorker(Number(threadsArg));

// jax-js looks for `Worker` as it loads, so it is imported after the line above.
const jax = await import("@jax-js/jax");
const { jit, nn, numpy: np, tree, valueAndGrad } = jax;
jax.defaultDevice("wasm");
const pooled = typeof Worker !== "undefined";
const threads = pooled ? navigator.hardwareConcurrency : 1;

const { params: stored, inputs, targets, batch, time, vocab, dim, layers } = loadWork(weights);
const rows = batch * time;
const headDim = dim / HEADS;
const params = {};
for (const [name, { shape, data }] of Object.entries(stored)) {
  params[name] = np.array(data, { shape });
}
const x = np.array(inputs);
const y = np.array(targets);

// In jax-js a call consumes its array arguments; `.ref` keeps one for later use.
function lossOf(p, x, y) {
  const get = (name) => p[name].ref;
  const linear = (h, name) => np.matmul(h, get(`${name}.weight`)).add(get(`${name}.bias`));
  const norm = (h, name) =>
    nn
      .standardize(h, -1, { epsilon: LN_EPS })
      .mul(get(`${name}.weight`))
      .add(get(`${name}.bias`));

  // nn.dotProductAttention uses iterator helpers, which Node 20 lacks; this is the same composite.
  const attention = (h, name) => {
    const qkv = linear(h, `${name}.c_attn`).reshape([batch, time, 3 * HEADS, headDim]);
    const [q, k, v] = np.split(qkv.transpose([0, 2, 1, 3]), 3, 1);
    const scores = np.matmul(q, k.transpose([0, 1, 3, 2])).mul(1 / Math.sqrt(headDim));
    const causal = np.where(np.tri(time, time, 0, { dtype: np.bool }), scores, -1e9);
    const mixed = np.matmul(nn.softmax(causal, -1), v);
    return linear(mixed.transpose([0, 2, 1, 3]).reshape([rows, dim]), `${name}.c_proj`);
  };

  // Gather (with its scatter gradient) is faster here than a one-hot matmul. The rows stay flat and
  // the positions are tiled, because jax-js 0.1.25 cannot compile a scatter of a reshaped gradient.
  let h = np.take(get("wte.weight"), x, 0).add(np.tile(get("wpe.weight"), [batch, 1]));
  for (let layer = 0; layer < layers; layer++) {
    h = h.add(attention(norm(h.ref, `h.${layer}.ln_1`), `h.${layer}.attn`));
    const hidden = nn.gelu(linear(norm(h.ref, `h.${layer}.ln_2`), `h.${layer}.mlp.c_fc`));
    h = h.add(linear(hidden, `h.${layer}.mlp.c_proj`));
  }
  const logits = np.matmul(norm(h, "ln_f"), get("wte.weight").transpose());
  tree.dispose(p);

  const isTarget = y.reshape([rows, 1]).equal(np.arange(vocab));
  const picked = np.where(isTarget, logits.ref, 0).sum(-1);
  return nn.logsumexp(logits, -1).sub(picked).mean();
}

const lossAndGrads = jit(valueAndGrad(lossOf));

async function step() {
  const [loss, grads] = lossAndGrads(tree.ref(params), x.ref, y.ref);
  // Without a pool the synchronous path is the faster one (about 15 %): dataSync() runs every
  // kernel of the call. The pool works on the asynchronous path only. Either way wait for it all.
  const value = pooled ? undefined : loss.ref.dataSync()[0];
  await jax.blockUntilReady([loss, grads]);
  tree.dispose(grads);
  return value ?? (await loss.data())[0];
}

const note = pooled
  ? "wasm backend; jax-js's own worker pool, on a Worker supplied by the bench"
  : "wasm backend as shipped: Node has no global Worker, so one thread";
await serve({ version: packageVersion("@jax-js/jax"), threads, note }, step);
