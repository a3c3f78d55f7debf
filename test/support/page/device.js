/** AdamW steps of a small GPT-2 by a stepper, in Node and in pages alike: `library` is the package. */

const [vocabSize, batchSize, seqLen] = [64, 2, 16];

function batchOf(library, rng) {
  const count = batchSize * seqLen;
  const tokens = () => Int32Array.from({ length: count }, () => rng.integer(vocabSize));
  return {
    ids: new library.Tensor("int32", [batchSize, seqLen], tokens()),
    targets: new library.Tensor("int32", [count], tokens()),
    weights: new library.Tensor("float32", [count], new Float32Array(count).fill(1)),
  };
}

/**
 * Five steps of an adapter (or of all parameters) with clipping, a running mean and two parts in the last
 * step; then one whose gradient is not finite. Losses, what the device counted, and the end's numbers.
 */
export async function trainOnDevice(library, backend, { isFull }) {
  const model = new library.Gpt2({
    vocabSize,
    dModel: 32,
    nLayers: 1,
    nHeads: 2,
    maxPositions: seqLen,
  });
  const rng = new library.Rng(4);
  const { params } = model.init(rng.fold("model"));
  const adapter = library.lora(model, { rank: 2 });
  const trainee = isFull
    ? { model, frozen: {}, trained: params }
    : {
        model,
        frozen: params,
        trained: adapter.init(rng.fold("adapter")),
        adapt: (values) => adapter.context(values),
      };
  const groups = [
    {
      paths: Object.keys(trainee.trained),
      // The gradient of the keys' bias is zero but for rounding: ε is above it.
      optimizer: library.optim.adamW({ epsilon: 1e-6 }),
    },
  ];
  const stepper = await library.makeStepper(trainee, groups, backend, {
    clipNorm: 1,
    ema: 0.9,
    accumulates: true,
  });
  const stats = () => backend.device?.stats;
  const start = stats();
  const [losses, norms, crossings] = [[], [], []];
  for (let step = 0; step < 5; step++) {
    const parts = Array.from({ length: step === 4 ? 2 : 1 }, (_, i) => ({
      batch: batchOf(library, rng.fold("batch", i)),
      noise: rng.fold("noise", step, i),
    }));
    const before = stats();
    const { loss, gradientNorm } = await stepper.step(parts, 1e-2);
    losses.push(loss);
    norms.push(gradientNorm);
    const after = stats();
    crossings.push(
      after && {
        up: after.uploadedBytes - before.uploadedBytes,
        down: after.downloadedBytes - before.downloadedBytes,
      },
    );
  }
  const batch = batchOf(library, rng.fold("batch", 0));
  const scored = await stepper.evaluate(batch);
  const trained = await stepper.params();
  const weights = batch.weights.clone();
  weights.data[0] = Infinity;
  const broken = { batch: { ...batch, weights }, noise: rng };
  const { isApplied } = await stepper.step([broken], 1e-2);
  const kept = await stepper.params();
  const held = stats();
  const state = await stepper.state();
  await stepper.release();
  const listed = (tensors) => Object.values(tensors).map(({ data }) => Array.from(data));
  return {
    losses,
    norms,
    crossings,
    loss: scored.loss,
    params: listed(trained),
    state: listed(state.tensors),
    steps: state.step,
    isApplied,
    isKept: JSON.stringify(listed(kept)) === JSON.stringify(listed(trained)),
    start,
    held,
    end: stats(),
  };
}

/** What a device tensor's life allows: messages of what it refuses. */
export async function deviceRules(library, backend) {
  const { device } = backend;
  const messageOf = async (run) => {
    try {
      await run();
      return "none";
    } catch (error) {
      return error.message;
    }
  };
  const data = Float32Array.from({ length: 5 }, (_, i) => i + 0.5);
  const x = await device.upload(new library.Tensor("float32", [5], data));
  const y = await device.allocate([5], "float32");
  const odd = await device.upload(new library.Tensor("bool", [3], Uint8Array.of(1, 0, 1)));
  const none = await device.upload(library.Tensor.zeros([0, 4], "float32"));
  const read = async (tensor) => Array.from((await tensor.read()).data);
  const numbers = [await read(x), await read(y), await read(odd), await read(none)];
  const { program } = library.trace(
    (a, b) => [library.add(a, b), library.mul(a, b)],
    [library.spec([5]), library.spec([5])],
  );
  const executable = await backend.load(program);
  const [sum, product] = await executable.runOnDevice([x, x], [y]);
  const results = [sum === y, await read(y), product instanceof library.Tensor, [...product.data]];
  const refusals = [
    await messageOf(() => executable.runOnDevice([x, y], [y])),
    await messageOf(() => executable.runOnDevice([x, x], [y, y])),
    await messageOf(() => device.upload(library.Tensor.zeros([2], "float64"))),
    await messageOf(() => device.allocate([2 ** 20, 2 ** 20], "float32")),
  ];
  const { tensors, bytes } = device.stats;
  for (const tensor of [x, y, odd, none]) tensor.release();
  refusals.push(
    await messageOf(() => x.release()),
    await messageOf(() => x.read()),
    await messageOf(() => executable.runOnDevice([x, x])),
  );
  await executable.release();
  const left = device.stats;
  return { numbers, results, refusals, held: [tensors, bytes], left: [left.tensors, left.bytes] };
}

/** Tokens that a small model draws after two prompts, and what the decoder left on the device. */
export async function decodeOnDevice(library, backend) {
  const model = new library.Gpt2({
    vocabSize: 31,
    dModel: 16,
    nLayers: 1,
    nHeads: 2,
    maxPositions: 32,
  });
  const { params } = model.init(new library.Rng(1));
  const decoder = new library.Decoder(model, params, backend);
  const made = await decoder.generate([Int32Array.of(3, 1, 4), Int32Array.of(1, 5, 9, 2, 6)], {
    maxNewTokens: 6,
    temperature: 0.8,
    seed: 4,
  });
  const held = backend.device?.stats.tensors;
  await decoder.release();
  return { made: made.map((tokens) => [...tokens]), held, left: backend.device?.stats.tensors };
}
