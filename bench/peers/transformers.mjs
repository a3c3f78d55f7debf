// @huggingface/transformers on our own ONNX export: greedy decoding, and nothing fetched.
//
//   node transformers.mjs decode-fp32|decode-q8|decode-q4 <threads> <folder>
//
// The folder has the layout of the Hub (config.json, onnx/model*.onnx) and bench.json: { prompt }.
import { readFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { AutoModelForCausalLM, env, Tensor } from "@huggingface/transformers";
import { packageVersion, serve } from "./lib.mjs";

const NEW_TOKENS = 128;
const FORMS = { "decode-fp32": "fp32", "decode-q8": "q8", "decode-q4": "q4" };

const [work = "", threadsText = "1", given = ""] = process.argv.slice(2);
const dtype = FORMS[work];
if (!dtype)
  throw new Error(`unknown work "${work}"; it is one of ${Object.keys(FORMS).join(", ")}`);
const threads = Number(threadsText);
const folder = resolve(given);
const { prompt } = JSON.parse(readFileSync(join(folder, "bench.json"), "utf8"));

env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const model = await AutoModelForCausalLM.from_pretrained(basename(folder), {
  dtype,
  device: "cpu",
  local_files_only: true,
  // Idle threads spin by default.
  session_options: { intraOpNumThreads: threads, interOpNumThreads: 1 },
});
// As many tokens as every side makes, whatever they are.
model.generation_config.eos_token_id = null;

const shape = [1, prompt.length];
const inputs = {
  input_ids: new Tensor("int64", BigInt64Array.from(prompt, BigInt), shape),
  attention_mask: new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), shape),
};

await serve(
  {
    version: packageVersion("@huggingface/transformers"),
    threads,
    note: `onnxruntime-node ${packageVersion("onnxruntime-node")}, ${dtype}, float32 cache`,
  },
  async () => {
    const output = await model.generate({
      ...inputs,
      max_new_tokens: NEW_TOKENS,
      do_sample: false,
    });
    return Array.from(output.data.slice(prompt.length), Number);
  },
);
