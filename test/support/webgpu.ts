/** Trains a tiny GPT-2 on Node's WebGPU provider; prints losses and where each node ran, as JSON. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { trainTinyGpt } from "./tiny-gpt.ts";

interface Event {
  readonly cat: string;
  readonly name: string;
  readonly args: { readonly op_name: string; readonly provider: string };
}

const folder = mkdtempSync(join(tmpdir(), "plasticity-webgpu-"));
const backend = await nodeOrt({ provider: "webgpu" });
const losses = await trainTinyGpt(backend, Number(process.argv[2]), {
  profile: join(folder, "profile"),
});
const text = readFileSync(join(folder, readdirSync(folder)[0]!), "utf8");
rmSync(folder, { recursive: true });
const kernels = (JSON.parse(text) as Event[]).filter(
  ({ cat, name }) => cat === "Node" && name.endsWith("_kernel_time"),
);
/** Operators by provider, one entry per node. A node has an event for each time that it ran. */
const placement: Record<string, Record<string, number>> = {};
for (const { args } of new Map(kernels.map((event) => [event.name, event])).values()) {
  const ops = placement[args.provider] ?? {};
  ops[args.op_name] = (ops[args.op_name] ?? 0) + 1;
  placement[args.provider] = ops;
}
console.log(JSON.stringify({ losses, placement }));
