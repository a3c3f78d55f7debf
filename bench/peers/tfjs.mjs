// TensorFlow.js peer: one AdamW step of the tiny GPT, wasm backend (SIMD). One thread in Node: the
// backend turns its threads off there, and fails to start when they are forced on.
//   gpt-adamw        matMul with our own gradient: tfjs's wasm backend sends only unbatched matmuls
//                    without transpose flags to XNNPACK, and tfjs's gradient of matMul uses the
//                    flags. Transposing explicitly is about 5 times faster, so this is the fair arm.
//   gpt-adamw-plain  tf.matMul and its own gradient, as a user would first write it.
import tf from "@tensorflow/tfjs";
import wasm from "@tensorflow/tfjs-backend-wasm";
import { HEADS, LN_EPS, loadWork, packageVersion, serve } from "./lib.mjs";

const LR = 1e-3;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPS = 1e-8;
const DECAY = 0.01;

const [work, threadsArg, weights] = process.argv.slice(2);
if (!["gpt-adamw", "gpt-adamw-plain"].includes(work)) throw new Error(`unknown work: ${work}`);
const plain = work === "gpt-adamw-plain";

wasm.setThreadsCount(Number(threadsArg));
if (!(await tf.setBackend("wasm"))) throw new Error("the wasm backend did not start");
if (!(await tf.env().getAsync("WASM_HAS_SIMD_SUPPORT"))) throw new Error("no wasm SIMD here");

const { params: stored, inputs, targets, batch, time, vocab, dim, layers } = loadWork(weights);
const rows = batch * time;
const headDim = dim / HEADS;
const params = {};
const moments = {};
for (const [name, { shape, data }] of Object.entries(stored)) {
  params[name] = tf.variable(tf.tensor(data, shape), true, name);
  moments[name] = [tf.zeros(shape), tf.zeros(shape)];
}

// One-hot embedding: the gather gradient needs UnsortedSegmentSum, which the backend lacks. Cast
// from int32, because the backend's oneHot writes integers into a tensor it labels float32.
const oneHot = (ids) => tf.tidy(() => tf.oneHot(tf.tensor1d(ids, "int32"), vocab).cast("float32"));
const x = oneHot(inputs);
const y = oneHot(targets);
const mask = tf.tidy(() =>
  tf.linalg
    .bandPart(tf.ones([time, time]), -1, 0)
    .sub(1)
    .mul(1e9),
);

function transposed(a) {
  const axes = a.shape.map((_, i) => i);
  return a.transpose([...axes.slice(0, -2), a.rank - 1, a.rank - 2]);
}

const fastMatMul = tf.customGrad((a, b, save) => {
  save([a, b]);
  const gradFunc = (dy, [a, b]) => [tf.matMul(dy, transposed(b)), tf.matMul(transposed(a), dy)];
  return { value: tf.matMul(a, b), gradFunc };
});
const matMul = plain ? (a, b) => tf.matMul(a, b) : fastMatMul;
const matMulT = plain
  ? (a, b) => tf.matMul(a, b, false, true)
  : (a, b) => fastMatMul(a, transposed(b));

const linear = (h, name) => matMul(h, params[`${name}.weight`]).add(params[`${name}.bias`]);

function norm(h, name) {
  const { mean, variance } = tf.moments(h, -1, true);
  const standard = h.sub(mean).mul(variance.add(LN_EPS).rsqrt());
  return standard.mul(params[`${name}.weight`]).add(params[`${name}.bias`]);
}

function gelu(h) {
  const inner = h.mul(h.square().mul(0.044715).add(1)).mul(Math.sqrt(2 / Math.PI));
  return h.mul(0.5).mul(inner.tanh().add(1));
}

function attention(h, name) {
  const qkv = linear(h, `${name}.c_attn`).reshape([batch, time, 3 * HEADS, headDim]);
  const [q, k, v] = tf.split(qkv.transpose([0, 2, 1, 3]), 3, 1);
  const scores = matMulT(q, k).mul(1 / Math.sqrt(headDim));
  const mixed = matMul(tf.softmax(scores.add(mask)), v);
  return linear(mixed.transpose([0, 2, 1, 3]).reshape([rows, dim]), `${name}.c_proj`);
}

function lossOf() {
  const tokens = matMul(x, params["wte.weight"]).reshape([batch, time, dim]);
  let h = tokens.add(params["wpe.weight"]).reshape([rows, dim]);
  for (let layer = 0; layer < layers; layer++) {
    h = h.add(attention(norm(h, `h.${layer}.ln_1`), `h.${layer}.attn`));
    const hidden = gelu(linear(norm(h, `h.${layer}.ln_2`), `h.${layer}.mlp.c_fc`));
    h = h.add(linear(hidden, `h.${layer}.mlp.c_proj`));
  }
  return tf.losses.softmaxCrossEntropy(y, matMulT(norm(h, "ln_f"), params["wte.weight"]));
}

// AdamW with the bias corrections folded into the step size and epsilon (the same update).
function update(name, grad, t) {
  const correction2 = Math.sqrt(1 - BETA2 ** t);
  const [oldM, oldV] = moments[name];
  const m = tf.keep(oldM.mul(BETA1).add(grad.mul(1 - BETA1)));
  const v = tf.keep(oldV.mul(BETA2).add(grad.square().mul(1 - BETA2)));
  const change = m.div(v.sqrt().add(EPS * correction2)).mul((LR * correction2) / (1 - BETA1 ** t));
  params[name].assign(params[name].mul(1 - LR * DECAY).sub(change));
  tf.dispose([oldM, oldV]);
  moments[name] = [m, v];
}

let t = 0;
function step() {
  t++;
  return tf.tidy(() => {
    const { value, grads } = tf.variableGrads(lossOf);
    for (const [name, grad] of Object.entries(grads)) update(name, grad, t);
    return value.dataSync()[0];
  });
}

const threads = wasm.getThreadsCount();
const note = `wasm backend with SIMD; ${plain ? "tf.matMul's own gradient" : "XNNPACK-friendly matmul gradient"}`;
await serve({ version: packageVersion("@tensorflow/tfjs"), threads, note }, step);
