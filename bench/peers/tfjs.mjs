import tf from "@tensorflow/tfjs";
import wasm from "@tensorflow/tfjs-backend-wasm";
import { HEADS, LN_EPS, loadWork, serve } from "./lib.mjs";

const LR = 1e-3;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPS = 1e-8;
const DECAY = 0.01;
const MM = process.env.MM ?? "plain";
const [work, threads, weights] = process.argv.slice(2);
wasm.setThreadsCount(Number(threads));
await tf.setBackend("wasm");
await tf.ready();
const { params: raw, inputs, targets, batch, time, vocab, dim, layers } = loadWork(weights);
const rows = batch * time;
const params = {};
const moments = {};
for (const [name, { shape, data }] of Object.entries(raw)) {
  params[name] = tf.variable(tf.tensor(data, shape), true, name);
  moments[name] = [tf.zeros(shape), tf.zeros(shape)];
}
const x = tf.tidy(() => tf.oneHot(tf.tensor1d(inputs, "int32"), vocab).cast("float32"));
const y = tf.tidy(() => tf.oneHot(tf.tensor1d(targets, "int32"), vocab).cast("float32"));
const mask = tf.tidy(() => tf.linalg.bandPart(tf.ones([time, time]), -1, 0).sub(1).mul(1e9));
mask.print;

const T = (a) => { const n = a.rank; const p = [...Array(n).keys()]; [p[n-1], p[n-2]] = [p[n-2], p[n-1]]; return a.transpose(p); };
function flat(a, b) {
  if (a.rank === 2 || MM !== "unstack") return tf.matMul(a, b);
  const as = tf.unstack(a.reshape([-1, ...a.shape.slice(2)])), bs = tf.unstack(b.reshape([-1, ...b.shape.slice(2)]));
  return tf.stack(as.map((q, i) => tf.matMul(q, bs[i]))).reshape([...a.shape.slice(0, 3), b.shape[3]]);
}
const matmul = MM === "plain" ? (a, b) => tf.matMul(a, b) : tf.customGrad((a, b, save) => {
  save([a, b]);
  return {
    value: flat(a, b),
    gradFunc: (dy, [a, b]) => [flat(dy, T(b)), flat(T(a), dy)],
  };
});

function norm(h, name) {
  const { mean, variance } = tf.moments(h, -1, true);
  return h.sub(mean).mul(variance.add(LN_EPS).rsqrt()).mul(params[`${name}.weight`]).add(params[`${name}.bias`]);
}
const linear = (h, name) => matmul(h, params[`${name}.weight`]).add(params[`${name}.bias`]);
const gelu = (h) => h.mul(0.5).mul(h.mul(h.square().mul(0.044715).add(1)).mul(Math.sqrt(2 / Math.PI)).tanh().add(1));

function attention(h, name) {
  const qkv = linear(h, `${name}.c_attn`).reshape([batch, time, 3 * HEADS, dim / HEADS]).transpose([0, 2, 1, 3]);
  const [q, k, v] = tf.split(qkv, 3, 1);
  const scores = (MM === "plain" ? tf.matMul(q, k, false, true) : matmul(q, T(k))).mul(Math.sqrt(HEADS / dim)).add(mask);
  const out = matmul(tf.softmax(scores), v).transpose([0, 2, 1, 3]).reshape([rows, dim]);
  return linear(out, `${name}.c_proj`);
}
function forward() {
  let h = matmul(x, params["wte.weight"]).reshape([batch, time, dim]).add(params["wpe.weight"]).reshape([rows, dim]);
  for (let l = 0; l < layers; l++) {
    h = h.add(attention(norm(h, `h.${l}.ln_1`), `h.${l}.attn`));
    h = h.add(linear(gelu(linear(norm(h, `h.${l}.ln_2`), `h.${l}.mlp.c_fc`)), `h.${l}.mlp.c_proj`));
  }
  h = norm(h, "ln_f");
  const logits = MM === "plain" ? tf.matMul(h, params["wte.weight"], false, true) : matmul(h, T(params["wte.weight"]));
  return tf.losses.softmaxCrossEntropy(y, logits);
}
let t = 0;
let tg = 0, tu = 0;
function step() {
  t++;
  return tf.tidy(() => {
    const t0 = performance.now();
    const { value, grads } = tf.variableGrads(forward);
    const t1 = performance.now();
    const scale = (LR * Math.sqrt(1 - BETA2 ** t)) / (1 - BETA1 ** t);
    const eps = EPS * Math.sqrt(1 - BETA2 ** t);
    for (const [name, g] of Object.entries(grads)) {
      const [m, v] = moments[name];
      const m2 = m.mul(BETA1).add(g.mul(1 - BETA1));
      const v2 = v.mul(BETA2).add(g.square().mul(1 - BETA2));
      params[name].assign(params[name].mul(1 - LR * DECAY).sub(m2.div(v2.sqrt().add(eps)).mul(scale)));
      tf.dispose([m, v]);
      moments[name] = [tf.keep(m2), tf.keep(v2)];
    }
    if (process.env.V) console.error("grad", (t1 - t0).toFixed(0), "upd", (performance.now() - t1).toFixed(0), tf.memory().numTensors);
    return value.dataSync()[0];
  });
}
await serve({ version: tf.version.tfjs, threads: wasm.getThreadsCount(), note: "" }, step);
