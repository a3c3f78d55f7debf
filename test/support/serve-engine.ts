/** A small model with wide weights, adapters for it, and engines that serve it. */

import type { LoadedAdapter } from "../../src/adapters/adapter.ts";
import { loraBank } from "../../src/adapters/bank.ts";
import { lora } from "../../src/adapters/lora.ts";
import type { Backend } from "../../src/backend/backend.ts";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { ServeEngine, type ServeOptions } from "../../src/infer/serve/engine.ts";
import type { ServeHandle } from "../../src/infer/serve/feed.ts";
import type { ServeRequest } from "../../src/infer/serve/stream.ts";
import { Llama } from "../../src/models/llama.ts";
import type { TensorRecord } from "../../src/nn/module.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

export const vocabSize = 97;

export const model: Llama = new Llama({
  vocabSize,
  dModel: 32,
  dFeedForward: 48,
  nLayers: 2,
  nHeads: 4,
  nKvHeads: 2,
  maxPositions: 256,
});

export const params: TensorRecord = model.init(new Rng(5)).params;
// Wide weights: texts are varied, and depend on all that stands before.
for (const tensor of Object.values(params)) {
  if (tensor.shape.length < 2) continue;
  for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 12;
}

/** An adapter whose two factors are random. */
export function adapterOf(seed: number, rank = 4): LoadedAdapter {
  const adapter = lora(model, { rank, targetModules: ["q_proj", "v_proj"] });
  const own = adapter.init(new Rng(seed));
  for (const [name, { shape, size }] of Object.entries(own)) {
    own[name] = new Tensor("float32", shape, new Rng(seed).fold(name).normals(size, 0.4));
  }
  return { adapter, params: own };
}

const ort = await nodeOrt({ threads: 1 });

/** What was compiled and released. */
export const sessions = { loaded: 0, released: 0 };

export const backend: Backend = {
  name: ort.name,
  load: async (program, options) => {
    const executable = await ort.load(program, options);
    sessions.loaded++;
    return {
      inputs: executable.inputs,
      outputs: executable.outputs,
      run: (inputs, into) => executable.run(inputs, into),
      release: async () => {
        sessions.released++;
        await executable.release();
      },
    };
  },
};

/** Bytes of a page of eight tokens. */
export const pageBytes: number = 2 * 2 * 2 * 8 * 8 * 4;

export const clock: { readonly monotonic: () => number } = { monotonic: () => performance.now() };

/** An engine with pages of eight tokens and a bank of four slots. */
export async function engineOf(
  options: ServeOptions & { pages?: number } = {},
): Promise<ServeEngine> {
  const { pages = 400, ...rest } = options;
  const bank = loraBank(model, { slots: 4, maxRank: 8, targetModules: ["q_proj", "v_proj"] });
  return ServeEngine.create(model, params, backend, clock, {
    bank,
    prefillTokens: 24,
    cache: { pageTokens: 8, bytes: pages * pageBytes },
    ...rest,
  });
}

export function randomPrompt(seed: number, length: number): Int32Array<ArrayBuffer> {
  const rng = new Rng(seed).fold("prompt");
  return Int32Array.from({ length }, () => rng.integer(vocabSize));
}

/** Everything of an answer that must not depend on others, log-probabilities to the last bit. */
export async function answerOf(handle: ServeHandle): Promise<unknown> {
  const { tokens, logprobs, finishReason } = await handle.result;
  return { tokens: [...tokens], logprobs, finishReason };
}

/** The answer to a request that an engine of its own gives. */
export async function alone(
  request: ServeRequest,
  adapters: Readonly<Record<string, LoadedAdapter>> = {},
): Promise<unknown> {
  const engine = await engineOf();
  if (request.adapter !== undefined) {
    engine.loadAdapter(request.adapter, adapters[request.adapter]!);
  }
  try {
    return await answerOf(engine.submit(request));
  } finally {
    await engine.close();
  }
}

/** Lets an engine make so many passes, or come to its end. */
export async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}
