// node-llama-cpp with its batching: streams that begin at once, a sequence of one context each, on the CPU.
//
//   node llama-serve.mjs serve-f32-<streams>|serve-q8-<streams> <threads> <folder>
//
// The folder has f32.gguf, q8_0.gguf and bench.json: { prompts }.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { median, packageVersion, serve } from "./lib.mjs";
import { openLlama } from "./open-llama.mjs";

const NEW_TOKENS = 128;
const FILES = { f32: "f32.gguf", q8: "q8_0.gguf" };

const [work = "", threadsText = "1", folder = ""] = process.argv.slice(2);
const threads = Number(threadsText);
const [, form, streamsText] = /^serve-(f32|q8)-(\d+)$/.exec(work) ?? [];
if (!form)
  throw new Error(`unknown work "${work}"; it is serve-f32-<streams> or serve-q8-<streams>`);
const streams = Number(streamsText);
const { prompts } = JSON.parse(readFileSync(join(folder, "bench.json"), "utf8"));

const llama = await openLlama(threads);
const model = await llama.loadModel({ modelPath: join(folder, FILES[form]), gpuLayers: 0 });
const length = prompts[0].length;
const context = await model.createContext({
  sequences: streams,
  contextSize: length + NEW_TOKENS,
  // Tokens of all sequences in one call; 512 is its default.
  batchSize: Math.max(512, streams),
  threads,
  ...(form === "f32" && { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" }),
});
const sequences = Array.from({ length: streams }, () => context.getSequence());

let next = 0;

await serve(
  {
    version: packageVersion("node-llama-cpp"),
    threads,
    note: `llama.cpp ${llama.llamaCppRelease.release}, ${streams} sequences of one context, ${form === "f32" ? "float32" : "float16"} cache`,
  },
  async () => {
    for (const sequence of sequences) await sequence.clearHistory();
    const start = performance.now();
    const first = [];
    const tokens = await Promise.all(
      sequences.map(async (sequence) => {
        const prompt = prompts[next++ % prompts.length];
        const own = [];
        for await (const token of sequence.evaluate(prompt, {
          temperature: 0,
          yieldEogToken: true,
        })) {
          if (own.push(token) === 1) first.push(performance.now() - start);
          if (own.length === NEW_TOKENS) break;
        }
        if (own.length !== NEW_TOKENS) throw new Error(`a stream made ${own.length} tokens`);
        return own;
      }),
    );
    return { tokens: tokens[0], firstMs: median(first) };
  },
);
