/**
 * LT-SFT across made-up languages: parts of speech learnt in one language, tagged in another that the base model
 * has never seen and that only raw text is given of.
 *
 * Ansell et al., arXiv:2110.07560. Language and task differences are trained apart, each arm with the same steps;
 * at test the source language's is left out and the target's added. Words are pieces of one BPE vocabulary.
 */
import type { Adapter } from "../adapters/adapter.ts";
import { withModules } from "../adapters/saved-modules.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../data/bpe.ts";
import { type TokenClassExample, taskSet } from "../data/task-examples.ts";
import { Tokenizer } from "../data/tokenizer.ts";
import { StateError } from "../errors.ts";
import { bindLtSft, sparseDeltaOf } from "../methods/adapt/lt-sft.ts";
import { maskableSlots } from "../methods/adapt/shared/lottery.ts";
import { SparseDelta } from "../methods/adapt/shared/sparse-delta.ts";
import { firstNumbers } from "../methods/initialise.ts";
import { Bert } from "../models/bert.ts";
import { headedModel } from "../models/headed.ts";
import type { EncoderModel } from "../models/model.ts";
import type { Module, SiteFn, TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import { type Examples, finetune, scoreExamples } from "../train/finetune.ts";
import type { AnyObjective } from "../train/objective.ts";
import { prepareScene } from "../train/prepare.ts";
import type { Trainee } from "../train/program.ts";
import { maskedLm } from "../train/tasks/masked-lm.ts";
import { tokenClassification } from "../train/tasks/token-classification.ts";
import { withAdapter } from "../train/trainee.ts";
import { openBase } from "./bases/base.ts";
import { bottleneck } from "./bottleneck.ts";
import { madeUp } from "./data/glyphs.ts";
import type { Arm, Budget, Cell, Experiment, ExperimentContext, Metrics } from "./experiment.ts";
import { type Language, madeUpLanguage, sentencesOf, wordClasses } from "./made-up-languages.ts";

const sizes = {
  full: {
    ...{ dModel: 96, nLayers: 3, vocabSize: 1500, baseSteps: 1200, baseBatch: 64 },
    ...{ steps: 90, batchSize: 32, text: 1500, labelled: 1000, test: 300 },
  },
  quick: {
    ...{ dModel: 32, nLayers: 2, vocabSize: 500, baseSteps: 40, baseBatch: 16 },
    ...{ steps: 12, batchSize: 8, text: 100, labelled: 60, test: 40 },
  },
} as const;

const arms: Readonly<Record<string, string>> = {
  "lt-sft": "LT-SFT, 8 % of the weights for task and language each",
  "lt-sft-30": "LT-SFT, 30 %",
  dense: "all weights, differences added",
  "rand-sft": "8 % of the weights by chance",
  bitfit: "biases alone, differences added",
  "mad-x": "bottleneck adapters of a language and a task, as many numbers as LT-SFT changes",
  "task-only": "LT-SFT of the task alone, no language",
  oracle: "LT-SFT with labels in the target language, which no other arm sees",
};

/** The first four are in the base's texts; labels are in the first. */
const known = 4;
const targets = { fifth: 4, sixth: 5 } as const;
const cognateShares = { "": 0.25, "-few-cognates": 0.1 } as const;

const special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"] as const;

/** Languages of one share of cognates, as the models read them. */
interface World {
  readonly filler: EncoderModel;
  readonly base: TensorRecord;
  readonly tagger: EncoderModel;
  readonly ids: Readonly<Record<(typeof special)[number], number>>;
  encode(language: number, count: number, name: string): readonly TokenClassExample[];
}

type Shared = Readonly<Record<string, World>>;

const setOf = (list: readonly TokenClassExample[]): Examples =>
  taskSet(list, ({ ids, labels }) => ({ length: ids.length, loss: 1, all: [ids, labels] }));

async function openWorld(
  context: ExperimentContext,
  name: string,
  cognates: number,
): Promise<World> {
  const { dModel, nLayers, vocabSize, baseSteps, baseBatch, text } = sizes[context.budget];
  const languages = Array.from({ length: 6 }, (_, i) => madeUpLanguage(i, cognates));
  const rng = new Rng(73);
  const settings = { dModel, nLayers, vocabSize, baseSteps, baseBatch, cognates };
  const data = madeUp(`made-up-languages${name}`, { ...settings, version: 1 });
  context.recordData(data);
  const linesOf = (language: Language): string[] =>
    sentencesOf(language, Math.min(600, text), rng.fold("bpe", language.id)).map(
      ({ words }) => ` ${words.join(" ")}`,
    );
  const bpe = trainBpe(languages.flatMap(linesOf), { vocabSize, specialTokens: [...special] });
  const tokenizer = new Tokenizer(
    {
      tokenizer: toTokenizerJson(bpe),
      config: toTokenizerConfig(bpe, { eosToken: "[SEP]", maxLength: 128 }),
    },
    "made-up languages",
  );
  const ids = Object.fromEntries(special.map((token) => [token, tokenizer.encode(token)[0]!]));
  const pieces = new Map<string, readonly number[]>();
  const piecesOf = (word: string): readonly number[] => {
    const found = pieces.get(word) ?? Array.from(tokenizer.encode(` ${word}`));
    pieces.set(word, found);
    return found;
  };
  const encode: World["encode"] = (id, count, part) =>
    sentencesOf(languages[id]!, count, rng.fold(part, id)).map(({ words, tags }) => {
      const split = words.map(piecesOf);
      const tokens = [ids["[CLS]"]!, ...split.flat(), ids["[SEP]"]!];
      const labels = split.flatMap((list, i) => list.map((_, j) => (j === 0 ? tags[i]! : -1)));
      return {
        ids: Int32Array.from(tokens),
        labels: Int32Array.from([-1, ...labels, -1]),
        lost: 0,
        isCut: false,
        start: 1,
        kept: tokens.length - 2,
      };
    });
  const opened = await openBase<EncoderModel>(
    context,
    { name: `languagesBert${name}`, version: "1", settings, dataChecksum: data.checksum },
    async () => {
      const model = new Bert({
        ...{ vocabSize: tokenizer.vocabSize, dModel, nLayers, nHeads: dModel / 16 },
        ...{ dFeedForward: 4 * dModel, maxPositions: 128, padId: ids["[PAD]"]! },
        head: { task: "masked-lm", labels: [], problem: "single_label_classification" },
      });
      const { params } = model.init(new Rng(0).fold("languages"));
      const count = Math.min(8000, Math.ceil((baseSteps * baseBatch) / known));
      const texts = Array.from({ length: known }, (_, id) => encode(id, count, "base")).flat();
      const trained = await learn(
        context,
        { model, objective: maskedObjective(model, ids["[MASK]"]!), frozen: {}, trained: params },
        texts,
        { steps: baseSteps, batchSize: baseBatch, learningRate: 2e-3, seed: 0 },
      );
      const fair = {
        model,
        objective: maskedObjective(model, ids["[MASK]"]!),
        frozen: {},
        trained,
      };
      const judged = setOf(encode(0, 100, "base test"));
      const { accuracy } = await scoreExamples(fair, judged, context.backend);
      return { model, params: trained, metrics: { maskedAccuracy: accuracy } };
    },
  );
  const tagger = headedModel(
    opened.model,
    opened.params,
    {
      task: "token-classification",
      labels: [...wordClasses],
      problem: "single_label_classification",
    },
    new Rng(0),
  ).model;
  return { filler: opened.model, base: opened.params, tagger, ids: ids as World["ids"], encode };
}

const maskedObjective = (model: EncoderModel, maskId: number): AnyObjective =>
  maskedLm(model, { maskId }) as AnyObjective;

async function learn(
  { backend, signal, progress }: ExperimentContext,
  trainee: Trainee<Module>,
  examples: readonly TokenClassExample[],
  settings: {
    readonly steps: number;
    readonly batchSize: number;
    readonly learningRate: number;
    readonly seed: number;
  },
): Promise<TensorRecord> {
  const { params, buffers } = await finetune(trainee, setOf(examples), backend, {
    ...settings,
    weightDecay: 0,
    signal,
    onStep: ({ step, steps, loss }) => {
      if (step % 20 === 0) progress(`step ${step}/${steps}, loss ${loss.toFixed(3)}`);
    },
  });
  signal.throwIfAborted();
  const all = Object.entries({ ...params, ...buffers });
  return Object.fromEntries(all.map(([name, tensor]) => [name, tensor.clone()]));
}

const density = (arm: string): number => ({ "lt-sft-30": 0.3, dense: 1 })[arm as "dense"] ?? 0.08;

/** The adapter that trains an arm's weights of the body; not of MAD-X. */
function sparseAdapter(
  arm: string,
  model: EncoderModel,
  isLanguage: boolean,
): ReturnType<typeof bindLtSft> {
  const biases = arm === "bitfit";
  const matrices = [...maskableSlots(model).keys()].filter((path) => !path.endsWith(".bias"));
  return bindLtSft(model, {
    density: biases ? 1 : density(arm),
    // One phase with every weight free is dense fine-tuning; of biases alone, BitFit.
    select: biases || arm === "dense" || arm === "rand-sft" ? "random" : "movement",
    ...(biases && { exclude: matrices }),
    ...(isLanguage && { freezeDecoder: true, l1: 0.1 }),
  });
}

/** Numbers of each bottleneck, so that an adapter has about as many as LT-SFT changes. */
function bottleneckRank(model: EncoderModel): number {
  const changed = bindLtSft(model, { density: density("lt-sft") }).budget;
  const { dModel, nLayers } = model.sizes;
  return Math.max(1, Math.round(changed / (2 * dModel * nLayers)));
}

const feedForward = (model: EncoderModel): string[] =>
  [...model.targets.keys()].filter((path) => /layer\.\d+\.output\.dense$/.test(path));

function languageAdapter(model: EncoderModel): Adapter {
  const options = { form: "sequential", scale: 1, outputs: feedForward(model) } as const;
  return bottleneck(model, { ...options, rank: bottleneckRank(model) });
}

/** A task adapter behind a frozen language adapter, whose numbers are buffers. */
function stacked(model: EncoderModel, language: TensorRecord): Adapter {
  const [below, own] = [languageAdapter(model), languageAdapter(model)];
  const named = Object.fromEntries(
    Object.entries(language).map(([name, tensor]) => [`language.${name}`, tensor]),
  );
  return {
    ...own,
    initBuffers: () => named,
    context: (values) => {
      const lower = Object.fromEntries(
        Object.keys(language).map((name) => [name, values[`language.${name}`]!]),
      );
      const [first, second] = [below.context(lower).sites!, own.context(values).sites!];
      const sites = new Map<Module, SiteFn>();
      for (const [layer, wrap] of first) {
        sites.set(layer, (x, y, inner, place) =>
          second.get(layer)!(x, wrap(x, y, inner, place), inner, place),
        );
      }
      return { sites };
    },
  };
}

interface Job {
  readonly arm: string;
  readonly seed: number;
  readonly learningRate: number;
  readonly world: string;
}

/** What an arm learns of a language from raw text: a packed difference, or an adapter's numbers. */
function languagePart(
  context: ExperimentContext,
  world: World,
  job: Job,
  language: number,
): Promise<TensorRecord> {
  const { steps, batchSize, text } = sizes[context.budget];
  return context.remember({ part: "language", language, ...job }, async () => {
    const { filler, base, ids } = world;
    const texts = world.encode(language, text, `text ${job.seed}`);
    const objective = maskedObjective(filler, ids["[MASK]"]);
    const settings = { steps, batchSize, learningRate: job.learningRate, seed: job.seed };
    if (job.arm === "mad-x") {
      const adapter = languageAdapter(filler);
      const loaded = { adapter, params: adapter.init(new Rng(job.seed)) };
      const trainee = { model: filler, objective, ...withAdapter(filler, base, loaded) };
      return learn(context, trainee, texts, settings);
    }
    const adapter = sparseAdapter(job.arm, filler, true);
    const maskSeed = 100 * job.seed + language + 1;
    return sparse(context, adapter, adapter, filler, base, objective, texts, settings, maskSeed);
  });
}

/** Trains a sparse difference; whole modules beside it come under their own names. */
async function sparse(
  context: ExperimentContext,
  adapter: ReturnType<typeof bindLtSft>,
  whole: Adapter,
  model: EncoderModel,
  base: TensorRecord,
  objective: AnyObjective,
  examples: readonly TokenClassExample[],
  settings: Parameters<typeof learn>[3],
  maskSeed: number,
): Promise<TensorRecord> {
  const common = { model, objective, frozen: base, trained: {} };
  // Weights that chance frees are others for each language and for the task.
  const scene = prepareScene(common, undefined, context.backend, { seed: maskSeed });
  const first = await firstNumbers(whole, scene);
  const loaded = { adapter: whole, ...first };
  const trainee = { model, objective, ...withAdapter(model, base, loaded) };
  const found = await learn(context, trainee, examples, settings);
  const delta = sparseDeltaOf(adapter, { params: found, buffers: { ...first.buffers, ...found } });
  const heads = Object.entries(found).filter(([name]) => name.includes(".classifier."));
  return { ...delta.pack(), ...Object.fromEntries(heads) };
}

const head = (name: string): string => `base_model.model.${name}`;

/** What an arm learns of the task from labels in one language, above that language's part. */
function taskPart(
  context: ExperimentContext,
  world: World,
  job: Job,
  language: number,
  below: TensorRecord,
): Promise<TensorRecord> {
  const { steps, batchSize, labelled } = sizes[context.budget];
  return context.remember({ part: "task", language, ...job }, async () => {
    const { tagger } = world;
    const base = taggerBase(world, job, below);
    const examples = world.encode(language, labelled, `labels ${job.seed}`);
    const objective = tokenClassification(tagger) as AnyObjective;
    const settings = { steps, batchSize, learningRate: job.learningRate, seed: job.seed };
    if (job.arm === "mad-x") {
      const adapter = withModules(stacked(tagger, below), tagger, ["classifier"], { params: base });
      const loaded = {
        adapter,
        params: adapter.init(new Rng(job.seed)),
        buffers: adapter.initBuffers!(),
      };
      const trainee = { model: tagger, objective, ...withAdapter(tagger, base, loaded) };
      return learn(context, trainee, examples, settings);
    }
    const adapter = sparseAdapter(job.arm, tagger, false);
    const whole = withModules(adapter, tagger, ["classifier"], { params: base });
    const maskSeed = 100 * job.seed;
    return sparse(context, adapter, whole, tagger, base, objective, examples, settings, maskSeed);
  });
}

function deltaOf(world: World, part: TensorRecord): SparseDelta {
  const slots = new Map(world.tagger.slots());
  const size = (path: string): number | undefined => {
    const slot = slots.get(path);
    return slot && sizeOf(slot.shape);
  };
  return SparseDelta.unpack(part, "part", size).delta;
}

/** The tagger's weights: the base's body with a language's difference, and a new head. */
function taggerBase(
  { tagger, base, ...world }: World,
  job: Job,
  language: TensorRecord,
): TensorRecord {
  const fresh = tagger.init(new Rng(job.seed).fold("head")).params;
  const own = Object.fromEntries(
    Object.entries(fresh).map(([path, tensor]) => [path, base[path] ?? tensor]),
  );
  if (job.arm === "mad-x") return own;
  return { ...own, ...deltaOf({ tagger, base, ...world }, language).apply(own) };
}

/** Accuracy of a task part above a language part. */
async function judge(
  context: ExperimentContext,
  world: World,
  job: Job,
  task: TensorRecord,
  language: TensorRecord,
  examples: readonly TokenClassExample[],
): Promise<number> {
  const { tagger } = world;
  const objective = tokenClassification(tagger) as AnyObjective;
  const base = taggerBase(world, job, language);
  let trainee: Trainee<Module>;
  if (job.arm === "mad-x") {
    const adapter = withModules(stacked(tagger, language), tagger, ["classifier"], {
      params: base,
    });
    const loaded = { adapter, params: task, buffers: adapter.initBuffers!() };
    trainee = { model: tagger, objective, ...withAdapter(tagger, base, loaded) };
  } else {
    const heads = Object.fromEntries(
      ["classifier.weight", "classifier.bias"].map((name) => [name, task[head(name)]!]),
    );
    const params = { ...base, ...deltaOf(world, task).apply(base), ...heads };
    trainee = { model: tagger, objective, frozen: {}, trained: params };
  }
  return (await scoreExamples(trainee, setOf(examples), context.backend)).accuracy;
}

async function run(cell: Cell, shared: Shared, context: ExperimentContext): Promise<Metrics> {
  const [, name, rest = ""] = /^(fifth|sixth)(.*)$/.exec(cell.task) ?? [];
  const world = shared[rest];
  if (!world || name === undefined) throw new StateError(`lt-sft: no task "${cell.task}".`);
  const { labelled, test } = sizes[context.budget];
  const target = targets[name as keyof typeof targets];
  const hasLanguage = cell.arm !== "task-only" && cell.arm !== "oracle";
  const job: Job = {
    arm: cell.arm,
    seed: cell.seed,
    learningRate: cell.settings["learningRate"] as number,
    world: rest,
  };
  const labels = cell.arm === "oracle" ? target : 0;
  const own = hasLanguage ? await languagePart(context, world, job, labels) : {};
  const other = hasLanguage ? await languagePart(context, world, job, target) : {};
  const task = await taskPart(context, world, job, labels, own);
  const score = (
    language: TensorRecord,
    id: number,
    part: string,
    count: number,
  ): Promise<number> => judge(context, world, job, task, language, world.encode(id, count, part));
  const accuracy = await score(other, target, "test", test);
  const dev = await score(own, labels, "test", test);
  const seen = await score(own, labels, `labels ${job.seed}`, Math.min(labelled, test));
  const isSparse = cell.arm !== "mad-x";
  const changed = isSparse
    ? deltaOf(world, task).count
    : Object.entries(task).reduce(
        (sum, [path, { size }]) => (path.includes("classifier") ? sum : sum + size),
        0,
      );
  return {
    accuracy,
    sourceAccuracy: dev,
    overfitting: seen - dev,
    changed,
    bytes: changed * (isSparse ? 8 : 4),
    overlap: isSparse && hasLanguage ? deltaOf(world, task).overlap(deltaOf(world, other)) : 0,
  };
}

export const experiment: Experiment<Shared> = {
  id: "lt-sft",
  title: "LT-SFT",
  version: "1",
  metrics: {
    accuracy: "share of words with the right class, in the target language, which has no labels",
    sourceAccuracy: "the same in the language of the labels",
    overfitting:
      "accuracy on training sentences less that on test sentences, language of the labels",
    changed: "weights that the task changes, the head's left out",
    bytes: "of these in a file",
    overlap: "share of the task's weights that the target language changes too",
  },
  needs: { bases: ["languagesBert", "languagesBert-few-cognates"] },
  plan: (budget: Budget) => {
    const { steps, batchSize } = sizes[budget];
    const isQuick = budget === "quick";
    // Two languages and the task; arms without languages get no more for the task.
    const costOf = (name: string): Arm["cost"] => {
      const parts = name === "task-only" || name === "oracle" ? 1 : 3;
      return { steps: parts * steps, examples: parts * steps * batchSize };
    };
    const small = ["bitfit", "mad-x"];
    return {
      arms: Object.entries(arms).map(([name, about]): Arm => ({ name, about, cost: costOf(name) })),
      tasks: isQuick ? ["fifth"] : ["fifth", "sixth", "fifth-few-cognates"],
      tuning: {
        metric: "sourceAccuracy",
        direction: "higher",
        tasks: ["fifth"],
        grid: Object.fromEntries(
          Object.keys(arms).map((name) => [
            name,
            (isQuick ? [2e-3] : small.includes(name) ? [3e-3, 1e-2] : [1e-3, 3e-3]).map(
              (learningRate) => ({ learningRate }),
            ),
          ]),
        ),
      },
      ...(isQuick && { seeds: 1 }),
    };
  },
  open: async (context) => {
    const names = context.budget === "quick" ? [""] : Object.keys(cognateShares);
    const worlds: Record<string, World> = {};
    for (const name of names) {
      const share = cognateShares[name as keyof typeof cognateShares];
      worlds[name] = await openWorld(context, name, share);
    }
    return worlds;
  },
  run,
};
