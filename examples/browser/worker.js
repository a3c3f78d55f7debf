/**
 * The engine's side of the page: a worker, so that the page stays responsive while it trains. It is sent
 * `{ id, kind, ...what }` and answers `{ id, value }` or `{ id, error }`, with `{ id, progress }` before.
 */
import {
  Decoder,
  defaultTemplate,
  encodeExamples,
  finetune,
  loadAdapter,
  loadModel,
  loadTokenizer,
  lora,
  Rng,
  saveAdapter,
  traineeOf,
  webOrt,
} from "plasticity";
import { browserHost, fetchFile, storageSpace } from "plasticity/browser";
import { readText } from "./data.js";
import { plan } from "./plan.js";

const modelFiles = [
  "tokenizer.json",
  "tokenizer_config.json",
  "model.safetensors",
  // Last: a folder with a config is complete.
  "config.json",
];
const adapterFiles = ["adapter_model.safetensors", "adapter_config.json"];
const template = defaultTemplate;

const host = browserHost({ root: "plasticity" });
const { files } = host;
/** What `start` made: the engine, the model and its tokenizer. */
let ready;
let stop;

async function fetchModel(folder, progress) {
  if (await files.info(files.join(folder, "config.json"))) return;
  await files.makeDirectory(folder);
  for (const name of modelFiles) {
    await fetchFile(host, `/models/builtin/${name}`, files.join(folder, name), {
      onProgress: (at) => progress({ file: name, ...at }),
    });
  }
}

async function start({ provider, numThreads }, progress) {
  const folder = "models/builtin";
  await fetchModel(folder, progress);
  const loaded = await loadModel(files, folder);
  const tokenizer = await loadTokenizer(files, folder);
  const backend = await webOrt({ provider, ...(numThreads && { numThreads }) });
  ready = { ...loaded, tokenizer, backend, provider };
  const parameters = Object.values(loaded.params).reduce((sum, { size }) => sum + size, 0);
  return {
    engine: backend.name,
    threads: provider === "wasm" ? backend.binding.maxThreads : undefined,
    parameters,
    maxPositions: loaded.model.sizes.maxPositions,
    space: await storageSpace(),
  };
}

/** The visitor's text as examples, cut where the model or the settings end. */
async function prepare({ text, settings }) {
  const { model, tokenizer } = ready;
  const raw = await readText(files, text);
  const maxLength = Math.min(settings.maxLength, model.sizes.maxPositions) + 1;
  return { raw, ...encodeExamples(raw, tokenizer, { template, maxLength }) };
}

/** The trainee anew: an adapter of fresh numbers beside the model. */
function adapt({ rank, seed }) {
  const { model, params } = ready;
  const adapter = lora(model, { rank, targetModules: "all-linear" });
  const own = adapter.init(new Rng(seed).fold("adapter"));
  return { adapter, trainee: traineeOf(model, params, { adapter, params: own }) };
}

async function estimate({ text, settings, limit }) {
  const data = await prepare({ text, settings });
  const { adapter, trainee } = adapt(settings);
  const planned = await plan({ ...ready, trainee, adapter }, data, settings, limit);
  const first = data.raw[0];
  return {
    ...planned,
    count: data.examples.length,
    pairs: data.raw.filter(({ kind }) => kind === "pair").length,
    cut: data.cut,
    empty: data.empty,
    tokens: data.examples.reduce((sum, { ids }) => sum + ids.length, 0),
    prompt: first.kind === "pair" ? first.prompt : first.text.split(/\s+/).slice(0, 6).join(" "),
  };
}

async function train({ text, settings, name }, progress) {
  const { examples } = await prepare({ text, settings });
  const { adapter, trainee } = adapt(settings);
  stop = new AbortController();
  const result = await finetune(trainee, examples, ready.backend, {
    ...settings,
    signal: stop.signal,
    onStep: ({ step, steps, loss }) => progress({ step, steps, loss, at: performance.now() }),
  });
  if (result.steps === 0) return { steps: 0, losses: [] };
  await saveAdapter(files, files.join("adapters", name), adapter, result.params, {
    base: "builtin",
  });
  return { steps: result.steps, losses: result.losses, isStopped: result.isStopped };
}

/** A continuation by the model alone, or with a kept adapter; `progress` brings the text so far. */
async function generate({ prompt, isPair, adapter: name, maxNewTokens = 48 }, progress) {
  const { model, params, tokenizer, backend } = ready;
  const adapter = name && (await loadAdapter(files, files.join("adapters", name), model));
  const decoder = new Decoder(model, params, backend, {
    prepack: false,
    ...(adapter && { adapter }),
  });
  const asked = isPair ? template.replace("{prompt}", () => prompt) : prompt;
  const ids = tokenizer.encode(asked).slice(0, model.sizes.maxPositions - 1);
  const made = [];
  const shown = () => tokenizer.decode(Int32Array.from(made), { skipSpecial: true });
  try {
    await decoder.generate([ids], {
      maxNewTokens,
      stopIds: tokenizer.eosId === undefined ? [] : [tokenizer.eosId],
      onToken: (_, token) => {
        made.push(token);
        progress({ text: shown() });
      },
    });
    return { text: shown() };
  } finally {
    await decoder.release();
  }
}

async function listAdapters() {
  await files.makeDirectory("adapters");
  const found = [];
  for (const { path } of await files.list("adapters")) {
    const [weights, config] = await Promise.all(
      adapterFiles.map((file) => files.info(files.join(path, file))),
    );
    if (weights && config) found.push({ name: path.split("/").at(-1), bytes: weights.bytes });
  }
  return { adapters: found.reverse(), space: await storageSpace() };
}

const kinds = {
  start,
  estimate,
  train,
  generate,
  listAdapters,
  stop: () => stop?.abort(),
  readAdapter: async ({ name, file }) => ({
    bytes: await files.readBytes(files.join("adapters", name, file)),
  }),
  removeAdapter: ({ name }) => files.remove(files.join("adapters", name)),
};

addEventListener("message", async ({ data: { id, kind, ...what } }) => {
  const progress = (value) => postMessage({ id, progress: value });
  try {
    postMessage({ id, value: await kinds[kind](what, progress) });
  } catch (error) {
    postMessage({ id, error: { message: error.message, code: error.code } });
  }
});
