// @huggingface/transformers on our own ONNX export: one static batch of prompts of equal length, which is the best
// batching that it has: streams that begin at once end together, and none can join on the way.
//
//   node transformers-serve.mjs serve-fp32-<streams> <threads> <folder>
//
// The folder has the layout of the Hub (config.json, onnx/model.onnx) and bench.json: { prompts }.
import { readFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { AutoModelForCausalLM, BaseStreamer, env, Tensor } from "@huggingface/transformers";
import { packageVersion, serve } from "./lib.mjs";

const NEW_TOKENS = 128;

const [work = "", threadsText = "1", given = ""] = process.argv.slice(2);
const [, streamsText] = /^serve-fp32-(\d+)$/.exec(work) ?? [];
if (!streamsText) throw new Error(`unknown work "${work}"; it is serve-fp32-<streams>`);
const streams = Number(streamsText);
const threads = Number(threadsText);
const folder = resolve(given);
const { prompts } = JSON.parse(readFileSync(join(folder, "bench.json"), "utf8"));

env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const model = await AutoModelForCausalLM.from_pretrained(basename(folder), {
  dtype: "fp32",
  device: "cpu",
  local_files_only: true,
  session_options: { intraOpNumThreads: threads, interOpNumThreads: 1 },
});
// As many tokens as every side makes, whatever they are.
model.generation_config.eos_token_id = null;

/** Told of the prompts, then of a token of every row at each step. */
class Watch extends BaseStreamer {
  moments = [];
  put() {
    this.moments.push(performance.now());
  }
  end() {}
}

let next = 0;

await serve(
  {
    version: packageVersion("@huggingface/transformers"),
    threads,
    note: `onnxruntime-node ${packageVersion("onnxruntime-node")}, one static batch, float32 cache`,
  },
  async () => {
    const rows = Array.from({ length: streams }, () => prompts[next++ % prompts.length]);
    const length = rows[0].length;
    const shape = [streams, length];
    const streamer = new Watch();
    const start = performance.now();
    const output = await model.generate({
      input_ids: new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), shape),
      attention_mask: new Tensor("int64", new BigInt64Array(streams * length).fill(1n), shape),
      max_new_tokens: NEW_TOKENS,
      do_sample: false,
      streamer,
    });
    if (output.dims[1] !== length + NEW_TOKENS) throw new Error(`rows of ${output.dims[1]} tokens`);
    const tokens = Array.from(output.data.slice(length, length + NEW_TOKENS), Number);
    return { tokens, firstMs: streamer.moments[1] - start };
  },
);
