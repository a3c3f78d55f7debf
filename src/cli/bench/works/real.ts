/** A real model's steps: LoRA beside float32 and beside 4 bits, greedy decoding in three forms. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { nodeHost } from "../../../host/node.ts";
import {
  Decoder,
  type LoadModelOptions,
  loadModel,
  lora,
  quantizedAsRead,
  quantizeModel,
  Rng,
  Tensor,
  traineeOf,
} from "../../../index.ts";
import { type RealTask, realFiles } from "../real.ts";
import type { Work } from "../serve.ts";
import { trainer } from "./gpt.ts";
import { engine, nextTokens, versionOf } from "./setup.ts";

const newTokens = 128;
const targetModules = ["q_proj", "v_proj"];
const adapterSizes = { rank: 8, alpha: 16 } as const;

function taskOf(folder: string): RealTask {
  return JSON.parse(readFileSync(join(folder, realFiles.task), "utf8")) as RealTask;
}

/** The first tokens of the first rows, as inputs and targets. */
function batchOf({ rows }: RealTask, count: number, length: number) {
  const ids = rows.slice(0, count).flatMap((row) => row.slice(0, length + 1));
  const data = nextTokens(new Tensor("int32", [count, length + 1], Int32Array.from(ids)));
  const total = data.targets.size;
  const weights = new Tensor("float32", [total], new Float32Array(total).fill(1));
  return { batch: { ...data, weights }, total };
}

interface LoraSizes {
  readonly rows: number;
  readonly length: number;
  /** Bits of the frozen layers; default floats. */
  readonly bits?: 4 | 8;
  readonly checkpoint?: boolean;
}

async function train(threads: number, folder: string, sizes: LoraSizes): Promise<Work> {
  const { rows, length, bits, checkpoint = false } = sizes;
  const backend = await engine(threads);
  const quantize = bits && { bits };
  const options: LoadModelOptions = quantize ? { keep: quantizedAsRead(quantize) } : {};
  const { model, params } = await loadModel(nodeHost().files, folder, options);
  const adapter = lora(model, { targetModules, ...adapterSizes });
  const trainee = traineeOf(
    model,
    params,
    { adapter, params: adapter.init(new Rng(0)) },
    quantize ? { quantize } : {},
  );
  const data = batchOf(taskOf(folder), rows, length);
  return {
    ...versionOf(backend),
    step: trainer(trainee, data, backend, 1e-4, { checkpoint }),
  };
}

export const realLora = (threads: number, folder: string): Promise<Work> =>
  train(threads, folder, { rows: 2, length: 128 });

export const realLora4 = (threads: number, folder: string): Promise<Work> =>
  train(threads, folder, { rows: 4, length: 256, bits: 4, checkpoint: true });

async function decode(
  threads: number,
  folder: string,
  quantize?: { readonly bits: 4 | 8; readonly activations?: "int8" },
): Promise<Work> {
  const backend = await engine(threads);
  const options: LoadModelOptions = quantize ? { keep: quantizedAsRead(quantize) } : {};
  const { model, params } = await loadModel(nodeHost().files, folder, options);
  const base = quantize ? quantizeModel(model, params, quantize) : undefined;
  const decoder = new Decoder(
    model,
    base?.params ?? params,
    backend,
    // Peers compute one row as one row, and promise nothing about its bits in a batch.
    { batchExact: false, ...(base && { form: base.context }) },
  );
  const prompt = Int32Array.from(taskOf(folder).prompt);
  const { note, version } = versionOf(backend);
  const form = quantize
    ? `${quantize.bits} bits in the blocks, activations in ${quantize.activations ?? "float32"}, float32 head and cache`
    : "float32 throughout";
  return {
    version,
    note: `${note}, ${form}, one row`,
    step: async () => {
      const [tokens] = await decoder.generate([prompt], {
        maxNewTokens: newTokens,
        temperature: 0,
      });
      return { tokens: [...tokens!] };
    },
  };
}

export const realDecode = (threads: number, folder: string): Promise<Work> =>
  decode(threads, folder);

export const realDecode8 = (threads: number, folder: string): Promise<Work> =>
  decode(threads, folder, { bits: 8, activations: "int8" });

export const realDecode4 = (threads: number, folder: string): Promise<Work> =>
  decode(threads, folder, { bits: 4 });

export const realDecode4Rounded = (threads: number, folder: string): Promise<Work> =>
  decode(threads, folder, { bits: 4, activations: "int8" });
