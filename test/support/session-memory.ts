/** Loads, runs and releases a program again and again; prints by how much resident memory grew. */

import { spec, trace } from "../../src/backend/compile.ts";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { add, tanh } from "../../src/ir/elementwise.ts";
import type { Value } from "../../src/ir/graph.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

const cycles = Number(process.argv[2]);
const size = 1024;
const backend = await nodeOrt({ threads: 1 });
// Values of 4 MB, of which two live at a time.
const chain = (x: Value): Value => [1, 2, 3, 4].reduce((y, i) => tanh(add(y, i)), x);
const input = Tensor.zeros([size, size], "float32");
const output = Tensor.zeros([size, size], "float32");

async function cycle(): Promise<void> {
  const { program } = trace(chain, [spec([size, size])]);
  const executable = await backend.load(program);
  executable.runSync([input], [output]);
  await executable.release();
}

const collect = (globalThis as { gc?: () => void }).gc;
for (let i = 0; i < 15; i++) await cycle();
collect?.();
const before = process.memoryUsage().rss;
for (let i = 0; i < cycles; i++) await cycle();
collect?.();
console.log(process.memoryUsage().rss - before);
