/** Trains a tiny GPT-2 on Node's WebGPU provider; prints losses and where each node ran, as JSON. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { trainTinyGpt } from "./tiny-gpt.ts";

interface Event {
  readonly cat: string;
  readonly name: string;
  readonly args?: { readonly op_name?: string; readonly provider?: string };
}

const folder = mkdtempSync(join(tmpdir(), "plasticity-webgpu-"));
const backend = await nodeOrt({ provider: "webgpu" });
const losses = await trainTinyGpt(backend, Number(process.argv[2] ?? 2), {
  profile: join(folder, "profile"),
});
const text = readFileSync(join(folder, readdirSync(folder)[0]!), "utf8");
rmSync(folder, { recursive: true });
/** By provider, then by operator: how many nodes. A node is counted once, however often it ran. */
const placement: Record<string, Record<string, string[]>> = {};
const seen = new Set<string>();
for (const { cat, name, args } of JSON.parse(text) as Event[]) {
  if (cat !== "Node" || !name.endsWith("_kernel_time") || seen.has(name)) continue;
  seen.add(name);
  const ops = (placement[args!.provider!] ??= {});
  (ops[args!.op_name!] ??= []).push(name);
}
const count = (ops: Record<string, string[]>): Record<string, number> =>
  Object.fromEntries(Object.entries(ops).map(([op, names]) => [op, names.length]));
console.log(
  JSON.stringify({
    losses,
    placement: Object.fromEntries(Object.entries(placement).map(([p, ops]) => [p, count(ops)])),
  }),
);
