// Writes a small seeded GPT-2-shaped weights file for trying the peers out:
//   node bench/peers/make-weights.mjs weights.safetensors [seed]
import { writeFileSync } from "node:fs";

const [path, seed = "1"] = process.argv.slice(2);
const LAYERS = 4;
const DIM = 128;
const TIME = 128;
const BATCH = 8;
const VOCAB = 2048;

// mulberry32
let state = Number(seed) >>> 0;
function uniform() {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}
const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());

const tensors = [];
const size = (shape) => shape.reduce((a, b) => a * b, 1);
const add = (name, shape, value) =>
  tensors.push({
    name,
    shape,
    dtype: "F32",
    data: Float32Array.from({ length: size(shape) }, value),
  });
const norm = (name) => {
  add(`${name}.weight`, [DIM], () => 1);
  add(`${name}.bias`, [DIM], () => 0);
};
const linear = (name, from, to) => {
  add(`${name}.weight`, [from, to], () => 0.02 * normal());
  add(`${name}.bias`, [to], () => 0);
};

add("wte.weight", [VOCAB, DIM], () => 0.02 * normal());
add("wpe.weight", [TIME, DIM], () => 0.02 * normal());
for (let layer = 0; layer < LAYERS; layer++) {
  norm(`h.${layer}.ln_1`);
  linear(`h.${layer}.attn.c_attn`, DIM, 3 * DIM);
  linear(`h.${layer}.attn.c_proj`, DIM, DIM);
  norm(`h.${layer}.ln_2`);
  linear(`h.${layer}.mlp.c_fc`, DIM, 4 * DIM);
  linear(`h.${layer}.mlp.c_proj`, 4 * DIM, DIM);
}
norm("ln_f");
const ids = Int32Array.from({ length: BATCH * (TIME + 1) }, () => Math.floor(uniform() * VOCAB));
tensors.push({ name: "ids", shape: [BATCH, TIME + 1], dtype: "I32", data: ids });

const header = {};
let offset = 0;
for (const { name, shape, dtype, data } of tensors) {
  header[name] = { dtype, shape, data_offsets: [offset, offset + data.byteLength] };
  offset += data.byteLength;
}
let json = JSON.stringify(header);
json = json.padEnd(Math.ceil(json.length / 8) * 8);
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(json.length));
writeFileSync(
  path,
  Buffer.concat([
    length,
    Buffer.from(json),
    ...tensors.map(({ data }) => Buffer.from(data.buffer)),
  ]),
);
