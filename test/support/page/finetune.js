/** Fine-tunes in a page: see train.js for what is done. */
import * as library from "plasticity";
import { browserHost, fetchFile } from "plasticity/browser";
import { trainingBytes } from "/plan.js";
import { bytesOf, prepare, train, trainTiny } from "./train.js";

/** The memories of WebAssembly made from now on. */
function watchMemories() {
  const made = [];
  WebAssembly.Memory = class extends WebAssembly.Memory {
    constructor(descriptor) {
      super(descriptor);
      made.push(this);
    }
  };
  return made;
}

export default async function run({ provider = "wasm", numThreads = 1, steps, isTiny }) {
  const memories = watchMemories();
  const backend = await library.webOrt({ provider, numThreads });
  const { maxThreads } = backend.binding;
  if (isTiny) return { losses: await trainTiny(library, backend, steps), maxThreads };
  const host = browserHost();
  await host.files.makeDirectory("builtin");
  for (const name of [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]) {
    await fetchFile(host, `/models/builtin/${name}`, `builtin/${name}`);
  }
  const { loaded, examples, trainee, settings } = await prepare(
    library,
    host.files,
    "builtin",
    steps,
  );
  const estimate = await trainingBytes({ ...loaded, trainee, provider }, examples, settings);
  const trained = await train(library, backend, host.files, {
    folder: "builtin",
    out: "adapter",
    steps,
  });
  return {
    ...trained,
    maxThreads,
    estimate,
    heap: Math.max(...memories.map(({ buffer }) => buffer.byteLength)),
    weights: await bytesOf(host.files, "adapter/adapter_model.safetensors"),
    config: await host.files.readText("adapter/adapter_config.json"),
  };
}
