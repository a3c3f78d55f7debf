/**
 * SketchTune against LoRA and its kin at equal numbers of trained parameters, on problems in words and on genres.
 *
 * Zhang et al., arXiv:2410.06364. A language model learns Brown and sums; each arm then learns a task from the same
 * batches for the same steps, at the best of three rates (values of sketches take a tenth of theirs). Three sizes of
 * codes and groups have equal numbers trained: 4 bits and one group, 3 bits and two, and LoRA of rank 9 beside
 * them; four groups of 4 bits have four times as many. Bytes count everything, floats with 16 bits.
 */
import type { LoadedAdapter, PrepareScene } from "../adapters/adapter.ts";
import { type LoraAdapter, lora } from "../adapters/lora.ts";
import type { Example } from "../data/example.ts";
import { memorySet } from "../data/set.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { Scorer } from "../infer/score.ts";
import { compareUpdateClasses, reconstructionError } from "../methods/adapt/sketch-grid.ts";
import {
  bindSketchTune,
  inputMoments,
  type SketchTuneAdapter,
  type SketchTuneOptions,
  sketchBytes,
} from "../methods/adapt/sketchtune.ts";
import { firstNumbers } from "../methods/initialise.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { dequantizeWeight, quantizeLinear } from "../nn/quantize.ts";
import {
  columnsOf,
  type Matrix,
  matrix,
  matrixOf,
  multiply,
  rowsOf,
  svd,
  tensorOf,
} from "../tensor/linalg/index.ts";
import { Rng } from "../tensor/rng.ts";
import { finetune } from "../train/finetune.ts";
import { prepareScene } from "../train/prepare.ts";
import { quantizeModel, type TraineeOptions, traineeOf, unpackedParams } from "../train/trainee.ts";
import { brownLm, tokensOf } from "./bases/language-model.ts";
import { genreNames, ofGenres, textOf } from "./data/brown.ts";
import type { Arm, Budget, Experiment, Metrics } from "./experiment.ts";
import { answerExample, exactMatches, windowExamples } from "./language.ts";

const sizes = {
  full: { steps: 150, batchSize: 16, train: 1200, test: 200, window: 40, batches: 8 },
  quick: { steps: 6, batchSize: 8, train: 48, test: 16, window: 16, batches: 2 },
} as const;

/** Whose numbers are 2^4 of each output of the linear layers. */
const rank = 9;
const doraRank = 8;
const blockSize = 32;

const sketches: Readonly<Record<string, SketchTuneOptions>> = {
  "sketch-g1": {},
  "sketch-g4": { groupsPerRow: 4 },
  "sketch-b3": { bits: 3, groupsPerRow: 2 },
  "sketch-plain": { power: 0 },
  "sketch-random": { codes: "random" },
};

const arms: Readonly<Record<string, string>> = {
  "sketch-g1": "SketchTune, 4 bits, one group a row",
  "sketch-g4": "SketchTune, 4 bits, four groups a row",
  "sketch-b3": "SketchTune, 3 bits, two groups a row",
  lora: "LoRA of rank 9 beside the float base",
  dora: "DoRA of rank 8 beside the float base",
  qlora: "LoRA of rank 9 beside a base of 4 bits",
  loftq: "the same, begun by five rounds of LoftQ",
  full: "all parameters",
  "sketch-plain": "SketchTune with plain k-means",
  "sketch-random": "SketchTune with codes by chance",
};

const tasks = ["problems", "genres"] as const;
type Task = (typeof tasks)[number];

interface TaskData {
  readonly train: readonly Example[];
  readonly test: readonly Example[];
}

interface Shared {
  readonly model: LanguageModel;
  readonly base: TensorRecord;
  data(task: Task, seed: number): TaskData;
}

const names = ["Ann", "Ben", "Tom", "Eve", "Sam", "Kim"];
const things = ["pens", "eggs", "cups", "hats", "keys", "maps"];
/** Government, fiction, religion. */
const few = "hkd";

/** Sums and differences below twenty, a line each. */
function sums(rng: Rng, lines: number): string {
  return Array.from({ length: lines }, () => {
    const [a, b] = [1 + rng.integer(12), 1 + rng.integer(9)];
    return rng.uniform() < 0.5 ? `${a} + ${b} = ${a + b}` : `${a + b} - ${b} = ${a}`;
  }).join("\n");
}

/** A problem in words, and its answer from 1 to 18. */
function problem(rng: Rng): readonly [question: string, answer: string] {
  const [a, b] = [1 + rng.integer(9), 1 + rng.integer(9)];
  const [name, thing] = [names[rng.integer(6)]!, things[rng.integer(6)]!];
  const told: readonly (readonly [string, number])[] = [
    [`${name} has ${a} ${thing} and buys ${b}`, a + b],
    [`${name} had ${a} ${thing}. ${b} more came`, a + b],
    [`of ${a + b} ${thing} ${name} gave ${b} away`, a],
    [`${name} had ${a + b} ${thing}. ${b} were lost`, a],
  ];
  const [question, answer] = told[rng.integer(told.length)]!;
  return [`${question}. left:`, ` ${answer}`];
}

/** A sequence of examples that is the same for the same stream. */
function problems(tokenizer: Tokenizer, count: number, rng: Rng): Example[] {
  return Array.from({ length: count }, (_, i) => {
    const [question, answer] = problem(rng.fold(i));
    return answerExample(tokenizer.encode(question), tokenizer.encode(answer));
  });
}

/** An example with tokens without loss behind it. */
function filled({ ids, mask }: Example, length: number): Example {
  const [all, marks] = [new Int32Array(length), new Uint8Array(length)];
  all.set(ids);
  marks.set(mask);
  return { ids: all, mask: marks };
}

const sizeOf = (params: TensorRecord): number =>
  Object.values(params).reduce((sum, { size }) => sum + size, 0);
const meanOf = (numbers: readonly number[]): number =>
  numbers.reduce((sum, x) => sum + x, 0) / Math.max(1, numbers.length);
const minus = (a: Matrix, b: Matrix): Matrix =>
  matrix(
    a.rows,
    a.columns,
    a.data.map((x, i) => x - b.data[i]!),
  );

/** The weight of a layer as 4 bits keep it. */
function rounded(model: LanguageModel, path: string, weight: Matrix): Matrix {
  const layer = model.targets.get(path)!;
  const packed = quantizeLinear(layer, tensorOf(weight), { bits: 4, blockSize });
  return matrix(weight.rows, weight.columns, Float64Array.from(dequantizeWeight(packed)));
}

/**
 * LoftQ (Li et al. 2023, arXiv:2310.08659): Q = quantised W - B A and B A = the best of rank r of W - Q, in turns.
 * @returns weights W - B A, which are then quantised, and first numbers of the LoRA at scale 1
 */
function loftq(
  model: LanguageModel,
  base: TensorRecord,
  adapter: LoraAdapter,
): { readonly base: TensorRecord; readonly params: TensorRecord } {
  const [weights, params]: [TensorRecord, TensorRecord] = [{ ...base }, {}];
  for (const [path, { a, b }] of adapter.layers) {
    const weight = matrixOf(base[`${path}.weight`]!);
    let left = weight;
    for (let round = 0; round < 5; round++) {
      const { u, s, vt } = svd(minus(weight, rounded(model, path, left)));
      const [second, first] = [columnsOf(u, 0, rank), rowsOf(vt, 0, rank)];
      for (let i = 0; i < second.data.length; i++) second.data[i]! *= Math.sqrt(s[i % rank]!);
      for (let i = 0; i < first.data.length; i++) {
        first.data[i]! *= Math.sqrt(s[Math.floor(i / first.columns)]!);
      }
      [params[a], params[b]] = [tensorOf(first), tensorOf(second)];
      left = minus(weight, multiply(second, first));
    }
    weights[`${path}.weight`] = tensorOf(left);
  }
  return { base: weights, params };
}

/** What an arm trains, in which form the base is kept, and its bytes. */
interface Begun {
  readonly base: TensorRecord;
  readonly loaded?: LoadedAdapter;
  readonly options: TraineeOptions;
  readonly bytes: number;
  /** Weights as the model has them before training, in place of the base's. */
  readonly weights: TensorRecord;
}

async function begin(
  arm: string,
  scene: PrepareScene,
  seed: number,
  batches: number,
): Promise<Begun> {
  const model = scene.model as LanguageModel;
  const base = { ...scene.base } as TensorRecord;
  const plain = { base, options: {}, bytes: 2 * sizeOf(base), weights: base };
  if (arm === "full") return plain;
  if (arm in sketches) {
    const adapter = bindSketchTune(model, { batches, ...sketches[arm] });
    const numbers = await firstNumbers(adapter, scene);
    const weights = adapter.merge(base, numbers.params, numbers.buffers);
    const bytes = sketchBytes(adapter, base, 2).total;
    return { base, loaded: { adapter, ...numbers }, options: {}, bytes, weights };
  }
  const isDora = arm === "dora";
  const own = isDora ? doraRank : rank;
  const adapter = lora(model, {
    ...{ rank: own, alpha: own, targetModules: "all-linear", useDora: isDora },
  });
  const { params } = await firstNumbers(adapter, scene);
  if (arm === "lora" || isDora) return { ...plain, loaded: { adapter, params } };
  const quantize = { bits: 4, blockSize } as const;
  const start =
    arm === "loftq"
      ? loftq(model, base, adapter)
      : { base, params: adapter.init(new Rng(seed).fold("qlora")) };
  const floats = unpackedParams(model, quantizeModel(model, start.base, quantize).params);
  const inside = sizeOf(
    Object.fromEntries(adapter.targets.map((path) => [path, base[`${path}.weight`]!])),
  );
  return {
    base: start.base,
    loaded: { adapter, params: start.params },
    options: { quantize },
    // Half a byte a weight, and a scale of 16 bits for each block.
    bytes: 2 * (sizeOf(base) - inside) + inside / 2 + (2 * inside) / blockSize,
    weights: { ...floats, ...adapter.merge(floats, start.params) },
  };
}

export const experiment: Experiment<Shared> = {
  id: "sketchtune",
  title: "SketchTune",
  version: "1",
  metrics: {
    exact: "share of test questions answered exactly",
    parameters: "numbers trained",
    baseBytes: "bytes of the whole model as it is stored before training, floats with 16 bits",
    reconstruction: "‖W X - Ŵ X‖ / ‖W X‖ before training, mean over layers",
    sketchResidual:
      "share of the change by full fine-tuning that codes of 4 bits cannot say; 0 for other arms",
    lowRankResidual: "the same for a rank of as many numbers; 0 for other arms",
    stepTime: "milliseconds of a step; differs between runs",
  },
  needs: { data: ["brown"], bases: ["brownLm"] },
  plan: (budget: Budget) => {
    const { steps, batchSize } = sizes[budget];
    const cost = { steps, examples: steps * batchSize };
    const ratesOf = (name: string): readonly number[] => {
      if (name === "full") return [1e-3, 3e-4, 3e-3];
      return name in sketches ? [3e-2, 1e-2, 1e-1] : [5e-3, 1.5e-3, 1.5e-2];
    };
    return {
      arms: Object.entries(arms).map(
        ([name, about]): Arm => ({
          ...{ name, about, cost },
          ...(budget === "quick" && { settings: { learningRate: ratesOf(name)[0]! } }),
        }),
      ),
      tasks,
      ...(budget === "full"
        ? {
            tuning: {
              metric: "exact",
              direction: "higher",
              tasks: ["problems"],
              grid: Object.fromEntries(
                Object.keys(arms).map((name) => [
                  name,
                  ratesOf(name).map((learningRate) => ({ learningRate })),
                ]),
              ),
            },
          }
        : { seeds: 1 }),
    };
  },
  open: async (context) => {
    const { train, test, window } = sizes[context.budget];
    const isQuick = context.budget === "quick";
    const rng = new Rng(88);
    const extra = Array.from({ length: isQuick ? 4 : 500 }, (_, i) =>
      sums(rng.fold("sums", i), 100),
    );
    const { model, params, tokenizer, trainFiles, heldOutFiles } = await brownLm(context, {
      ...{ dModel: isQuick ? 64 : 96, nLayers: 2, extra },
      ...(!isQuick && { steps: 1000 }),
    });
    const genres = (files: typeof trainFiles, count: number, own: Rng): Example[] =>
      [...few].flatMap((genre) => {
        const tokens = tokensOf(tokenizer, ofGenres(files, genre).map(textOf));
        const found = windowExamples(tokens, window);
        const answer = tokenizer.encode(` ${genreNames[genre]}`);
        const asked = tokenizer.encode(". genre:");
        return Array.from(own.fold(genre).permutation(found.length))
          .slice(0, Math.ceil(count / few.length))
          .map((at) => answerExample([...found[at]!.ids, ...asked], answer));
      });
    const drawn = new Map<string, TaskData>();
    return {
      model,
      base: params,
      data: (task, seed) => {
        const key = `${task} ${seed}`;
        const known = drawn.get(key);
        if (known) return known;
        const own = new Rng(seed).fold(task);
        const made =
          task === "problems"
            ? {
                train: problems(tokenizer, train, own.fold("train")),
                test: problems(tokenizer, test, own.fold("test")),
              }
            : {
                train: genres(trainFiles, train, own.fold("train")),
                test: genres(heldOutFiles, test, own.fold("test")),
              };
        drawn.set(key, made);
        return made;
      },
    };
  },
  run: async (cell, shared, context): Promise<Metrics> => {
    const { steps, batchSize, batches } = sizes[context.budget];
    const { model, base } = shared;
    const { clock } = context.host;
    const { train, test } = shared.data(cell.task as Task, cell.seed);
    const { signal, backend } = context;
    const scene = prepareScene(
      { model, frozen: base, trained: {}, maxLength: model.sizes.maxPositions },
      memorySet(train),
      backend,
      { batchSize, seed: cell.seed, signal },
    );
    const begun = await begin(cell.arm, scene, cell.seed, batches);
    const targets = [...model.targets.keys()];
    const own = (params: TensorRecord, path: string): Matrix => matrixOf(params[`${path}.weight`]!);
    const lost = async (): Promise<number> => {
      const layers = targets.map((path) => ({ path }));
      const moments = await inputMoments(scene, layers, batches);
      const weights = { ...base, ...begun.weights };
      return meanOf(
        targets.map((path) =>
          reconstructionError(own(base, path), own(weights, path), moments.get(path)!),
        ),
      );
    };
    const isWhole = targets.every(
      (path) => begun.weights[`${path}.weight`] === base[`${path}.weight`],
    );
    const reconstruction = isWhole ? 0 : await lost();
    const trainee = traineeOf(model, begun.base, begun.loaded, begun.options);
    const start = clock.monotonic();
    // One length, so that one program serves all steps.
    const longest = Math.max(...train.map(({ ids }) => ids.length));
    const rows = train.map((example) => filled(example, longest));
    const { params } = await finetune(trainee, rows, backend, {
      ...{ steps, batchSize, schedule: "linear", warmup: 0.1, weightDecay: 0, seed: cell.seed },
      learningRate: cell.settings["learningRate"] as number,
      signal,
      onStep: ({ step, loss }) => {
        if (step % 10 === 0) context.progress(`step ${step}/${steps}, loss ${loss.toFixed(3)}`);
      },
    });
    signal.throwIfAborted();
    const stepTime = (clock.monotonic() - start) / steps;
    const { loaded } = begun;
    const floats = begun.options.quantize
      ? unpackedParams(model, quantizeModel(model, begun.base, begun.options.quantize).params)
      : begun.base;
    const scorer = loaded
      ? new Scorer(model, floats, backend, { ...loaded, params })
      : new Scorer(model, params, backend);
    try {
      const { share } = await exactMatches(scorer, test, { signal });
      return {
        exact: share,
        parameters: sizeOf(trainee.trained),
        baseBytes: begun.bytes,
        reconstruction,
        ...(cell.arm === "full"
          ? await residuals(scene, base, params)
          : { sketchResidual: 0, lowRankResidual: 0 }),
        stepTime,
      };
    } finally {
      await scorer.release();
    }
  },
};

/** How much of a full fine-tuning's change fits neither the codes of a sketch nor a rank of as many numbers. */
async function residuals(
  scene: PrepareScene,
  base: TensorRecord,
  tuned: TensorRecord,
): Promise<{ sketchResidual: number; lowRankResidual: number }> {
  const adapter: SketchTuneAdapter = bindSketchTune(scene.model, {});
  const { buffers } = await firstNumbers(adapter, scene);
  const found = adapter.layers.map(({ path, codes }) => {
    const name = `${path}.weight`;
    const delta = minus(matrixOf(tuned[name]!), matrixOf(base[name]!));
    return compareUpdateClasses(delta, buffers[codes]! as never, [rank]);
  });
  const energy = found.reduce((sum, one) => sum + one.energy, 0);
  const share = (of: (one: (typeof found)[number]) => number): number =>
    found.reduce((sum, one) => sum + of(one), 0) / Math.max(Number.MIN_VALUE, energy);
  return {
    sketchResidual: share((one) => one.sketchResidual),
    lowRankResidual: share((one) => one.lowRankResidual[0]!),
  };
}
