// Shared by the peer workers: the safetensors reader, the model's shape and the JSON-lines protocol.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

export const HEADS = 4;
export const LN_EPS = 1e-5;

const TYPES = { F32: Float32Array, I32: Int32Array };

/** Reads a safetensors file into `{ name: { shape, data } }` (F32 and I32 only). */
export function readSafetensors(path) {
  const file = readFileSync(path);
  const headerLength = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + headerLength));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const ArrayType = TYPES[entry.dtype];
    if (!ArrayType) throw new Error(`${path}: ${name} is ${entry.dtype}, expected F32 or I32`);
    const [begin, end] = entry.data_offsets.map((offset) => 8 + headerLength + offset);
    // Copied, so that the data is aligned and stands alone.
    const bytes = new Uint8Array(file.subarray(begin, end));
    tensors[name] = { shape: entry.shape, data: new ArrayType(bytes.buffer) };
  }
  return tensors;
}

/** Splits a weights file into parameters, the inputs `ids[:, :-1]` and the targets `ids[:, 1:]`. */
export function loadWork(path) {
  const { ids, ...params } = readSafetensors(path);
  const [batch, width] = ids.shape;
  const time = width - 1;
  const inputs = new Int32Array(batch * time);
  const targets = new Int32Array(batch * time);
  for (let row = 0; row < batch; row++) {
    inputs.set(ids.data.subarray(row * width, row * width + time), row * time);
    targets.set(ids.data.subarray(row * width + 1, (row + 1) * width), row * time);
  }
  const [vocab, dim] = params["wte.weight"].shape;
  const layers = Object.keys(params).filter((name) => name.endsWith(".ln_1.weight")).length;
  return { params, inputs, targets, batch, time, vocab, dim, layers };
}

/** This process's peak resident memory in MB (VmHWM; Linux). */
function peakRssMb() {
  const match = /VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"));
  return Math.round(Number(match[1]) / 102.4) / 10;
}

/** The installed version of one of this folder's packages. */
export function packageVersion(name) {
  const path = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(path, "utf8")).version;
}

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Prints the ready line, then answers `{"steps": n}` and `{"exit": true}` until told to exit. */
export async function serve(ready, step) {
  const print = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
  print({ ready: true, ...ready });
  for await (const line of createInterface({ input: process.stdin })) {
    if (!line.trim()) continue;
    const message = JSON.parse(line);
    if (message.exit) break;
    const ms = [];
    const loss = [];
    const firstMs = [];
    let tokens;
    for (let i = 0; i < message.steps; i++) {
      const start = performance.now();
      const result = await step();
      ms.push(performance.now() - start);
      if (Array.isArray(result)) tokens = result;
      else if (typeof result === "object") {
        tokens = result.tokens;
        firstMs.push(result.firstMs);
      } else loss.push(result);
    }
    print({ ms, loss, ...(tokens && { tokens }), ...(firstMs.length > 0 && { firstMs }) });
  }
  print({ peakRssMb: peakRssMb() });
  process.exit(0);
}
