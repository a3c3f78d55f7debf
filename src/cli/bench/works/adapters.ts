/**
 * A training step with each adapter of the registry, beside plain LoRA at as many trained parameters: on a
 * Llama of 6 layers and width 384, 8 × 128 tokens, every linear layer of the blocks.
 */
import {
  type AnyMethod,
  causalLm,
  type Example,
  Finetuner,
  firstNumbers,
  Llama,
  type LoadedAdapter,
  MissingError,
  memorySet,
  methodById,
  OptionError,
  parseNamed,
  prepareScene,
  Rng,
  readOptions,
  type TensorRecord,
  traineeOf,
} from "../../../index.ts";
import type { Work } from "../serve.ts";
import { engine, versionOf } from "./setup.ts";

const sizes = { rows: 8, length: 128, steps: 1e6 } as const;

export const adapterBenchModel = (): Llama =>
  new Llama({
    vocabSize: 4096,
    dModel: 384,
    nLayers: 6,
    nHeads: 6,
    nKvHeads: 6,
    dFeedForward: 1024,
    maxPositions: 256,
    tieEmbeddings: true,
  });

const count = (tensors: TensorRecord): number =>
  Object.values(tensors).reduce((sum, { size }) => sum + size, 0);

async function bind(method: AnyMethod, options: object, model: Llama) {
  const read = readOptions(method.id, method.options as never, options);
  return method.roles.adapter!.bind(model, read as never, {
    load: () => {
      throw new MissingError(
        `${method.id}: needs other adapters, which a benchmark does not have.`,
      );
    },
  });
}

/** Trained numbers of a method with some options. */
export async function parametersOf(text: string): Promise<number> {
  const { id, options } = parseNamed("bench", text);
  const adapter = await bind(methodById(id), options, adapterBenchModel());
  return count(adapter.init(new Rng(0)));
}

/**
 * The method with that setting of its size which comes nearest to so many trained parameters; as it is where
 * nothing sets its size.
 * @throws OptionError for a method that cannot be used without more, as other adapters.
 */
export async function sizedTo(id: string, wanted: number): Promise<string> {
  const method = methodById(id);
  const { sizedBy } = method;
  if (sizedBy === undefined) {
    // What a method lacks is told here, and not by a process that ends.
    await parametersOf(id);
    return id;
  }
  const spec = method.options[sizedBy as never] as { readonly range: readonly [number, number] };
  const textOf = (value: number): string => `${id}:${sizedBy}=${value}`;
  let [best, least] = [id, Number.POSITIVE_INFINITY];
  for (let value = Math.max(1, spec.range[0]); value <= Math.min(spec.range[1], 4096); ) {
    let found: number;
    try {
      found = await parametersOf(textOf(value));
    } catch (error) {
      // A size that does not divide the layers.
      if (!(error instanceof OptionError)) throw error;
      value++;
      continue;
    }
    const off = Math.abs(Math.log(found / wanted));
    if (off < least) [best, least] = [textOf(value), off];
    // Some shrink as the setting grows.
    if (off > least && off > 0.7) break;
    value += Math.max(1, Math.floor(value / 16));
  }
  return best;
}

/** @param text as `--adapter` takes it */
export async function adapterStep(threads: number, text: string): Promise<Work> {
  const backend = await engine(threads);
  const model = adapterBenchModel();
  const { params } = model.init(new Rng(0).fold("model"));
  const { id, options } = parseNamed("bench", text);
  const adapter = await bind(methodById(id), options, model);
  const rng = new Rng(1);
  const examples = Array.from({ length: 64 }, (): Example => {
    const ids = Int32Array.from({ length: sizes.length + 1 }, () => rng.integer(4096));
    return { ids, mask: new Uint8Array(ids.length).fill(1) };
  });
  const scene = prepareScene(traineeOf(model, params), memorySet(examples), backend, {
    batchSize: sizes.rows,
  });
  const loaded: LoadedAdapter = { adapter, ...(await firstNumbers(adapter, scene)) };
  const trainee = { ...traineeOf(model, params, loaded), objective: causalLm };
  const tuner = await Finetuner.create(trainee, examples, backend, {
    steps: sizes.steps,
    batchSize: sizes.rows,
    learningRate: 1e-4,
    schedule: "constant",
  });
  const { version, note } = versionOf(backend);
  return {
    version,
    note: `${note}; ${text}: ${count(loaded.params)} trained parameters`,
    step: async () => ({ loss: (await tuner.next())!.loss }),
  };
}
