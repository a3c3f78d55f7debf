/** What adapters and initialisers may look at before a training: its data, as the frozen model sees it. */
import type { PrepareScene } from "../adapters/adapter.ts";
import { type Backend, type Executable, runAnywhere } from "../backend/backend.ts";
import { trace } from "../backend/compile.ts";
import { SessionCache } from "../backend/ort/cache.ts";
import { peakBytes } from "../backend/ort/peak.ts";
import { place, releaseAll } from "../backend/place.ts";
import { epochBatches } from "../data/epochs.ts";
import type { Example } from "../data/example.ts";
import type { AnyExampleSet } from "../data/set.ts";
import { OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { ContextOptions, Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { causalLm } from "./causal-lm.ts";
import type { AnyObjective, Batch, Scene } from "./objective.ts";
import { referencePrefix, type Trainee, TrainProgram } from "./program.ts";
import { ownWeights } from "./trainee.ts";

export interface SceneOptions {
  /** Examples together; default 16. */
  readonly batchSize?: number;
  /** Of the training, so that batches come in its order; default 0. */
  readonly seed?: number;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: (message: string) => void;
}

/** What is asked about: the frozen model without an adapter, and what it is going to learn. */
export type Prepared = Pick<
  Trainee<Module>,
  "model" | "frozen" | "trained" | "adapter" | "form" | "objective" | "maxLength"
>;

/**
 * A look at a model's weights and training data. What a trainee's adapter adds is left out.
 * @param set of the training; without one `inputs` and `gradients` refuse
 */
export function prepareScene(
  trainee: Prepared,
  set: AnyExampleSet | undefined,
  backend: Backend,
  options: SceneOptions = {},
): PrepareScene {
  const { batchSize = 16, seed = 0, signal, onProgress } = options;
  const model = trainee.model as PretrainedModel;
  const base: TensorRecord = {
    ...ownWeights(trainee as Trainee),
    ...(trainee.adapter ? {} : trainee.trained),
  };
  const { form, objective = causalLm as AnyObjective } = trainee;
  const shape = {
    rows: Math.min(batchSize, set?.count ?? batchSize),
    ...(trainee.maxLength !== undefined && { maxLength: trainee.maxLength }),
  };
  async function* read(): AsyncGenerator<readonly unknown[]> {
    if (!set || set.count === 0) {
      throw new OptionError("prepare: needs training data, and there is none — give --data.");
    }
    // The first epoch of `Finetuner` with the same seed.
    const rng = new Rng(seed).fold("epoch", 0);
    const batches = set.batches?.(batchSize, rng) ?? epochBatches(set.lengths, batchSize, rng);
    for (const batch of batches) {
      signal?.throwIfAborted();
      yield await set.get(batch);
    }
  }

  async function* inputs(
    layers: readonly string[],
  ): AsyncGenerator<Readonly<Record<string, Tensor<"float32">>>> {
    for (const path of layers) {
      if (model.targets.has(path)) continue;
      throw new OptionError(`prepare: "${path}" is no linear layer of this ${model.family}.`);
    }
    const isText = model.kind === "causal-lm";
    const learnt: AnyObjective = isText ? causalLm : objective;
    const cache = new SessionCache({ maxCount: 4 });
    const plans = new Map<string, Taps>();
    const frozen = await place({ ...base, ...(isText ? {} : objective.frozen) }, backend.device);
    try {
      for await (const found of read()) {
        const examples = isText ? found.flatMap(asText) : found;
        const batch = learnt.batch(examples as never[], shape);
        const key = shapesOf(batch);
        const taps = plans.get(key) ?? tapsOf(model, learnt, form, frozen, batch, layers);
        plans.set(key, taps);
        const { program, places } = taps;
        const lease = await cache.acquire(key, () => ({
          bytes: peakBytes(program),
          load: (): Promise<Executable> => backend.load(program),
        }));
        try {
          const given = [...Object.values(frozen), ...Object.values(batch)];
          const outputs = (await runAnywhere(lease.executable, given)) as Tensor<"float32">[];
          yield countedInputs(outputs, places, countedRows(batch, examples, shape.rows));
        } finally {
          await lease.done();
        }
      }
    } finally {
      await cache.clear();
      releaseAll(Object.values(frozen));
    }
  }

  async function gradients(paths: readonly string[], batches: number): Promise<TensorRecord> {
    if (!Number.isInteger(batches) || batches < 1) {
      throw new OptionError(`prepare: batches must be a whole number from 1, got ${batches}.`);
    }
    const missing = paths.find((path) => !Object.hasOwn(base, path));
    if (missing !== undefined) {
      throw new OptionError(
        form
          ? `prepare: "${missing}" is kept in 4 or 8 bits and has no gradient — load the model in full.`
          : `prepare: "${missing}" is no parameter of this ${model.family}.`,
      );
    }
    const wanted = new Set(paths);
    const rest = Object.entries(base).filter(([path]) => !wanted.has(path));
    const trained = Object.fromEntries(paths.map((path) => [path, base[path]!]));
    // What is compared with is the model itself: the same tensors under the reference's names.
    const same = Object.entries(base).map(([path, tensor]) => [
      `${referencePrefix}${path}`,
      tensor,
    ]);
    const frozen = {
      ...Object.fromEntries(rest),
      ...(form ? {} : Object.fromEntries(same)),
      ...objective.frozen,
      ...objective.init?.(new Rng(seed).fold("objective")),
    };
    const placed = { frozen: await place(frozen, backend.device), trained };
    const program = new TrainProgram(
      {
        model: trainee.model,
        objective,
        ...placed,
        ...(form && { adapt: (_: ValueRecord, values: ValueRecord) => form(values), form }),
      },
      backend,
      { cacheSize: 4 },
    );
    const zeros = (): TensorRecord =>
      Object.fromEntries(paths.map((path) => [path, Tensor.zeros(base[path]!.shape, "float32")]));
    let [sums, next] = [zeros(), zeros()];
    const noise = new Rng(seed).fold("prepare");
    let done = 0;
    try {
      for await (const examples of read()) {
        if (done === batches) break;
        const rng = noise.fold(done);
        const batch = objective.batch(examples as never[], { ...shape, rng: rng.fold("batch") });
        const total = batch.weights.data.reduce((a, b) => a + b, 0);
        await program.lossAndGradients(batch, trained, next, total, rng, sums);
        [sums, next] = [next, sums];
        done++;
        onProgress?.(`Gradients: ${done} of ${batches} batches`);
      }
    } finally {
      await program.release();
      releaseAll(Object.values(placed.frozen));
    }
    return sums;
  }

  return {
    model,
    base,
    rng: new Rng(seed).fold("adapter"),
    inputs,
    gradients,
    signal,
    ...(onProgress && { onProgress }),
  };
}

/** An example of whatever objective as a plain text: of a preference the better answer. */
function asText(example: unknown): Example[] {
  const one = example as Partial<{ ids: unknown; chosen: Example; example: Example }>;
  if (one.ids) return [example as Example];
  const text = one.chosen ?? one.example;
  return text ? [text] : [];
}

function shapesOf(batch: Batch): string {
  return Object.entries(batch)
    .map(([name, { shape }]) => `${name} ${shape}`)
    .join("|");
}

/** A program that gives layers' inputs, each distinct one once. */
interface Taps {
  readonly program: ReturnType<typeof trace>["program"];
  /** By layer: which outputs are its inputs, and whether those are rows of the answers (`inputs`). */
  readonly places: ReadonlyMap<
    string,
    readonly { readonly at: number; readonly isAnswer: boolean }[]
  >;
}

function tapsOf(
  model: PretrainedModel,
  objective: AnyObjective,
  form: ((values: ValueRecord) => ContextOptions) | undefined,
  frozen: Readonly<
    Record<string, { readonly shape: Tensor["shape"]; readonly dtype: Tensor["dtype"] }>
  >,
  batch: Batch,
  layers: readonly string[],
): Taps {
  const seen = new Map<string, Value[]>(layers.map((path) => [path, []]));
  const distinct = new Map<string, { readonly at: number; readonly value: Value }>();
  const fn = (values: ValueRecord, parts: ValueRecord): Value[] => {
    const sites = new Map<Module, SiteFn>(
      layers.map((path) => [
        model.targets.get(path)!,
        (input, output) => {
          seen.get(path)!.push(input);
          return output;
        },
      ]),
    );
    const context = model.context(values, {}, { ...form?.(values), sites });
    const scene = {
      model,
      values,
      context,
      reference: () => model.context(values, {}, form?.(values) ?? {}),
    };
    objective.loss(scene as Scene<never>, parts);
    for (const value of [...seen.values()].flat()) {
      if (!distinct.has(value.key)) distinct.set(value.key, { at: distinct.size, value });
    }
    return [...distinct.values()].map(({ value }) => value);
  };
  const { program } = trace(fn as never, [frozen as never, batch]);
  const unseen = layers.find((path) => seen.get(path)!.length === 0);
  if (unseen !== undefined) {
    throw new OptionError(`prepare: "${unseen}" has no part in this training.`);
  }
  const depends = dependsOn("1.inputs");
  const places = [...seen].map(
    ([path, values]) =>
      [
        path,
        values.map((value) => ({ at: distinct.get(value.key)!.at, isAnswer: depends(value) })),
      ] as const,
  );
  return { program, places: new Map(places) };
}

/** Whether a value is computed from the input of a name. */
function dependsOn(name: string): (value: Value) => boolean {
  const known = new Map<string, boolean>();
  return (value) => {
    const stack = [value];
    while (stack.length > 0) {
      const { node } = stack.at(-1)!;
      const key = String(node.id);
      const own = node.op === "input" && (node.attrs as { name: string }).name === name;
      const open = node.inputs.filter((input) => !known.has(String(input.node.id)));
      if (!own && !known.has(key) && open.length > 0) {
        stack.push(...open);
        continue;
      }
      known.set(key, own || node.inputs.some((input) => known.get(String(input.node.id))));
      stack.pop();
    }
    return known.get(String(value.node.id))!;
  };
}

/** Which rows of a batch are tokens that count, padding and missing examples left out. */
interface Counted {
  /** One for each of (B·T) of the texts, or of the pictures. */
  readonly texts: readonly boolean[];
  /** Of a text that is written: one for each of (B·T) of `inputs`. */
  readonly answers: readonly boolean[];
  /** Examples in the batch, and places for them. */
  readonly examples: number;
  readonly rows: number;
}

function countedRows(batch: Batch, examples: readonly unknown[], rows: number): Counted {
  const flags = (tensor: Tensor | undefined, counts: (row: number, at: number) => boolean) => {
    if (!tensor) return [];
    const [count, length] = tensor.shape as [number, number];
    return Array.from({ length: count * length }, (_, i) =>
      counts(Math.floor(i / length), i % length),
    );
  };
  const { ids, mask, segments, inputs } = batch as Partial<Record<string, Tensor>>;
  const isThere = (row: number): boolean => row % rows < examples.length;
  const width = ids?.shape[1] ?? 0;
  return {
    texts: flags(ids, (row, at) => {
      if (!isThere(row)) return false;
      if (segments) return segments.numbers()[row * width + at]! >= 0;
      if (mask) return mask.numbers()[row * width + at] === 1;
      return at < (examples[row] as Example).ids.length - 1;
    }),
    answers: flags(
      inputs,
      (row, at) =>
        isThere(row) && at < (examples[row] as { target: ArrayLike<number> }).target.length,
    ),
    examples: examples.length,
    rows,
  };
}

/** Rows of layers' inputs that count; layers that read the same share a tensor. */
function countedInputs(
  outputs: readonly Tensor<"float32">[],
  places: Taps["places"],
  { texts, answers, examples, rows }: Counted,
): Record<string, Tensor<"float32">> {
  const made = new Map<string, Tensor<"float32">>();
  const keep = (at: number, isAnswer: boolean): Tensor<"float32"> => {
    const tensor = outputs[at]!;
    const [count, width] = tensor.shape as [number, number];
    const flags = isAnswer ? answers : texts;
    // Pictures, pooled texts: whole examples count, or do not.
    const counts = (row: number): boolean =>
      flags.length === count ? flags[row]! : Math.floor((row * rows) / count) < examples;
    const kept: number[] = [];
    for (let row = 0; row < count; row++) if (counts(row)) kept.push(row);
    const data = new Float32Array(kept.length * width);
    kept.forEach((row, i) => {
      data.set(tensor.data.subarray(row * width, (row + 1) * width), i * width);
    });
    return new Tensor("float32", [kept.length, width], data);
  };
  const entries = [...places].map(([path, list]) => {
    const key = JSON.stringify(list);
    if (!made.has(key)) made.set(key, joined(list.map(({ at, isAnswer }) => keep(at, isAnswer))));
    return [path, made.get(key)!] as const;
  });
  return Object.fromEntries(entries);
}

function joined(parts: readonly Tensor<"float32">[]): Tensor<"float32"> {
  if (parts.length === 1) return parts[0]!;
  const width = parts[0]!.shape[1]!;
  const rows = parts.reduce((sum, { shape }) => sum + shape[0]!, 0);
  const data = new Float32Array(rows * width);
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.size;
  }
  return new Tensor("float32", [rows, width], data);
}
