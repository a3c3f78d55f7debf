// node-llama-cpp on GGUF files, on the CPU, with its prebuilt binary: greedy decoding.
//
//   node llama.mjs decode-f32|decode-q8|decode-given <threads> <folder>
//
// The folder has f32.gguf, q8_0.gguf and bench.json: { prompt, gguf }, the path of what was given.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageVersion, serve } from "./lib.mjs";
import { openLlama } from "./open-llama.mjs";

const NEW_TOKENS = 128;

const [work = "", threadsText = "1", folder = ""] = process.argv.slice(2);
const threads = Number(threadsText);
const { prompt, gguf } = JSON.parse(readFileSync(join(folder, "bench.json"), "utf8"));
const FILES = {
  "decode-f32": join(folder, "f32.gguf"),
  "decode-q8": join(folder, "q8_0.gguf"),
  "decode-given": gguf,
};
const modelPath = FILES[work];
if (!modelPath)
  throw new Error(`unknown work "${work}"; it is one of ${Object.keys(FILES).join(", ")}`);

const llama = await openLlama(threads);
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
// Equal precision also in the cache, where the weights are floats.
const isFloat = work === "decode-f32";
const context = await model.createContext({
  contextSize: prompt.length + NEW_TOKENS,
  batchSize: prompt.length,
  threads,
  ...(isFloat && { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" }),
});
const sequence = context.getSequence();

await serve(
  {
    version: packageVersion("node-llama-cpp"),
    threads,
    note: `llama.cpp ${llama.llamaCppRelease.release}, ${model.typeDescription ?? "GGUF"}, ${isFloat ? "float32" : "float16"} cache`,
  },
  async () => {
    await sequence.clearHistory();
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
      tokens.push(token);
      if (tokens.length === NEW_TOKENS) break;
    }
    return tokens;
  },
);
