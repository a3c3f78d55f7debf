/** What the works share: the engine, weights, training data. */
import { nodeHost } from "../../../host/node.ts";
import {
  type Backend,
  nodeOrt,
  type OrtBackend,
  SafetensorsFile,
  Tensor,
  Updater,
} from "../../../index.ts";
import type { Work } from "../serve.ts";

/** With threads that spin: a benchmark has the machine to itself. */
export async function engine(threads: number): Promise<OrtBackend> {
  return nodeOrt({ threads, spin: true });
}

export function versionOf(backend: OrtBackend): Pick<Work, "version" | "note"> {
  const { name, version } = backend.binding;
  return { version: `${name} ${version}`, note: "threads spin while idle" };
}

export async function readWeights(path: string): Promise<Record<string, Tensor>> {
  const file = await SafetensorsFile.open(nodeHost().files, path);
  const tensors: Record<string, Tensor> = {};
  for (const name of file.entries.keys()) tensors[name] = await file.read(name);
  await file.close();
  return tensors;
}

/** ids[:, :-1] as (B, T), ids[:, 1:] as (B·T,). */
export function nextTokens(ids: Tensor): { ids: Tensor<"int32">; targets: Tensor<"int32"> } {
  const [rows, width] = ids.shape as [number, number];
  const length = width - 1;
  const from = ids.data as Int32Array;
  const inputs = new Int32Array(rows * length);
  const targets = new Int32Array(rows * length);
  for (let row = 0; row < rows; row++) {
    inputs.set(from.subarray(row * width, row * width + length), row * length);
    targets.set(from.subarray(row * width + 1, (row + 1) * width), row * length);
  }
  return {
    ids: new Tensor("int32", [rows, length], inputs),
    targets: new Tensor("int32", [rows * length], targets),
  };
}

/** Trains all parameters with one optimiser. */
export function updaterOf(
  params: Record<string, Tensor>,
  optimizer: ConstructorParameters<typeof Updater>[1][number]["optimizer"],
  backend: Backend,
): Updater {
  return new Updater(params, [{ paths: Object.keys(params), optimizer }], backend);
}
