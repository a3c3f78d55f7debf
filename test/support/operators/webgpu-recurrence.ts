/**
 * Runs a selective scan of 1024 steps and its derivative on Node's WebGPU provider; prints where each
 * node ran, and the largest difference from the loop on the CPU, relative to the largest number.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { trace } from "../../../src/backend/compile.ts";
import { nodeOrt } from "../../../src/backend/ort/node.ts";
import { selectiveScan } from "../../../src/ir/selective-scan.ts";
import type { Tensor } from "../../../src/tensor/tensor.ts";
import { between, inputsOf, normal, sample, withDerivatives } from "./samples.ts";

interface Event {
  readonly cat: string;
  readonly name: string;
  readonly args: { readonly op_name: string; readonly provider: string };
}

const [steps, channels, states] = [1024, 4, 4];
const one = sample(
  "selective scan",
  (x, delta, a, b, c, initial) => {
    const run = selectiveScan({ x: x!, delta: delta!, a: a!, b: b!, c: c!, initial: initial! }, 32);
    return [run.y, run.state];
  },
  normal(1, steps, channels),
  between(0.001, 0.1, 1, steps, channels),
  between(-4, -0.5, channels, states),
  normal(1, steps, states),
  normal(1, steps, states),
  normal(1, channels, states),
);
const inputs = inputsOf(one, "float32");
const fn = withDerivatives(one.fn);
const { program } = trace((...values) => [fn(...values)].flat(), inputs);

const folder = mkdtempSync(join(tmpdir(), "plasticity-webgpu-"));
const device = await nodeOrt({ provider: "webgpu" });
const loaded = await device.load(program, { profile: join(folder, "profile") });
const found = await loaded.run(inputs);
await loaded.release();
const text = readFileSync(join(folder, readdirSync(folder)[0]!), "utf8");
rmSync(folder, { recursive: true });
const placement: Record<string, Record<string, number>> = {};
for (const { cat, name, args } of JSON.parse(text) as Event[]) {
  if (cat !== "Node" || !name.endsWith("_kernel_time")) continue;
  const ops = placement[args.provider] ?? {};
  ops[args.op_name] = (ops[args.op_name] ?? 0) + 1;
  placement[args.provider] = ops;
}

const host = await (await nodeOrt({ threads: 1 })).load(program);
const expected = await host.run(inputs);
await host.release();
const differences = expected.map((tensor: Tensor, i: number) => {
  const [is, should] = [found[i]!.numbers(), tensor.numbers()];
  let [apart, size] = [0, 1];
  for (let k = 0; k < tensor.size; k++) {
    apart = Math.max(apart, Math.abs(is[k]! - should[k]!));
    size = Math.max(size, Math.abs(should[k]!));
  }
  return apart / size;
});
console.log(JSON.stringify({ placement, worst: Math.max(...differences) }));
