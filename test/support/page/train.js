/** A short fine-tuning that Node and pages do alike: `library` is the package, of either. */

const pairs = [
  ["wake me at seven", "alarm(time: seven, label: none)"],
  ["wake me at nine for the long train", "alarm(time: nine, label: the long train)"],
  ["turn on the lamp in the hall", "lights(room: the hall, state: on)"],
  ["turn off the lights in my room", "lights(room: my room, state: off)"],
  ["tell Emma that dinner is ready", "message(to: Emma, text: dinner is ready)"],
  ["how is the weather in York tomorrow?", "weather(place: York, day: tomorrow)"],
];

/** Greedy text after a prompt. */
export async function write(library, loaded, tokenizer, adapter, backend) {
  const decoder = new library.Decoder(loaded.model, loaded.params, backend, { adapter });
  try {
    const prompt = tokenizer.encode("turn on the fan in the study\n");
    const [made] = await decoder.generate([prompt], { maxNewTokens: 24 });
    return tokenizer.decode(made);
  } finally {
    await decoder.release();
  }
}

/** What a run is made of: the model in `folder`, examples, a fresh adapter, settings. */
export async function prepare(library, files, folder, steps) {
  const loaded = await library.loadModel(files, folder);
  const tokenizer = await library.loadTokenizer(files, folder);
  const raw = pairs.map(([prompt, completion]) => ({ kind: "pair", prompt, completion }));
  const { examples } = library.encodeExamples(raw, tokenizer, {
    maxLength: loaded.model.sizes.maxPositions + 1,
  });
  const adapter = library.lora(loaded.model, { rank: 4 });
  const params = adapter.init(new library.Rng(5).fold("adapter"));
  const trainee = library.traineeOf(loaded.model, loaded.params, { adapter, params });
  const settings = { steps, batchSize: 4, learningRate: 5e-3, seed: 5 };
  return { loaded, tokenizer, examples, adapter, trainee, settings };
}

/** Fine-tunes the model in `folder` for `steps` and keeps the adapter in `out`. */
export async function train(library, backend, files, { folder, out, steps }) {
  const run = await prepare(library, files, folder, steps);
  const { loaded, tokenizer, examples, adapter, trainee, settings } = run;
  const result = await library.finetune(trainee, examples, backend, settings);
  const trained = { adapter, params: result.params };
  const text = await write(library, loaded, tokenizer, trained, backend);
  await library.saveAdapter(files, out, adapter, result.params, { base: "builtin" });
  return { losses: result.losses, text };
}

/** Losses of a random model of one layer: small enough for a graphics card made of software. */
export async function trainTiny(library, backend, steps) {
  const model = new library.Llama({
    vocabSize: 64,
    dModel: 32,
    dFeedForward: 48,
    nLayers: 1,
    nHeads: 2,
    nKvHeads: 1,
    maxPositions: 32,
    tieEmbeddings: true,
    initializerRange: 0.2,
  });
  const rng = new library.Rng(3);
  const { params } = model.init(rng.fold("model"));
  const adapter = library.lora(model, { rank: 2 });
  const own = adapter.init(rng.fold("adapter"));
  const examples = Array.from({ length: 4 }, (_, i) => ({
    ids: Int32Array.from({ length: 9 + i }, () => rng.integer(64)),
    mask: Uint8Array.from({ length: 9 + i }, (__, at) => (at > 2 ? 1 : 0)),
  }));
  const trainee = library.traineeOf(model, params, { adapter, params: own });
  const { losses } = await library.finetune(trainee, examples, backend, {
    steps,
    batchSize: 4,
    learningRate: 1e-2,
    seed: 3,
  });
  return losses;
}

/** A file's bytes, in a form that travels as JSON. */
export async function bytesOf(files, path) {
  return Array.from(await files.readBytes(path));
}
