/** Estimated and measured memory of a training step of a deep network, in bytes, as JSON. */
import { checkpoint, valueAndGrad } from "../../src/autodiff/grad.ts";
import { trace } from "../../src/backend/compile.ts";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { peakBytes } from "../../src/backend/ort/peak.ts";
import { add, square } from "../../src/ir/elementwise.ts";
import { gelu } from "../../src/ir/fused.ts";
import type { Value } from "../../src/ir/graph.ts";
import { dot } from "../../src/ir/linear.ts";
import { mean } from "../../src/ir/reduce.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

const isCheckpointed = process.argv[2] === "checkpoint";
const [rows, width, layers] = [2048, 512, 8];
const backend = await nodeOrt({ threads: 1 });
const block = (x: Value, w: Value): Value => add(x, gelu(dot(x, w), "tanh"));
const loss = (weights: Value[], x: Value): Value => {
  const y = weights.reduce(
    (h, w) => (isCheckpointed ? checkpoint((a) => block(a!, w))(h)[0]! : block(h, w)),
    x,
  );
  return mean(square(y));
};
const weights = Array.from({ length: layers }, () => Tensor.zeros([width, width], "float32"));
const x = Tensor.zeros([rows, width], "float32");
const { program } = trace(valueAndGrad(loss), [weights, x]);
const outputs = [Tensor.scalar(0), ...weights.map((w) => w.clone())];

const small = trace((a: Value) => dot(a, a), [Tensor.zeros([8, 8], "float32")]).program;
const warm = await backend.load(small);
warm.runSync([Tensor.zeros([8, 8], "float32")]);
const collect = (globalThis as { gc?: () => void }).gc;
collect?.();
const before = process.memoryUsage().rss;
const executable = await backend.load(program);
executable.runSync([...weights, x], outputs);
executable.runSync([...weights, x], outputs);
collect?.();
console.log(
  JSON.stringify({
    estimate: peakBytes(program),
    measured: process.memoryUsage().rss - before,
  }),
);
await executable.release();
