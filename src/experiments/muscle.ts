/**
 * MUSCLE on updates of a small language model: which answers become wrong when the base below a task's adapter
 * is replaced.
 *
 * Echterhoff et al., Findings of EMNLP 2024, arXiv:2407.09435. Version 1 of the base is trained on one half of
 * Brown. "near": version 2 on the other half, of the same size. "far": version 2 on all of it, wider and for
 * twice the steps. Tasks, as text to tokens: the word class of a marked word (pos), the genre group of a passage
 * (genre), the word classes of a phrase (classes, judged by edit similarity). The old and the new task adapter
 * are trained alike; every other arm goes on from the new one for the same steps, so that further training alone
 * ("further") is a control. Differs from the specification: a byte-pair vocabulary; no ensemble arm.
 */
import { weightsScene } from "../adapters/adapter.ts";
import { lora } from "../adapters/lora.ts";
import type { Example } from "../data/example.ts";
import { Decoder } from "../infer/decoder.ts";
import { choiceCompatibility, textCompatibility } from "../infer/metrics/compatibility.ts";
import { Scorer } from "../infer/score.ts";
import { type MuscleOptions, muscle } from "../methods/distill/muscle.ts";
import { firstNumbers } from "../methods/initialise.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { finetune } from "../train/finetune.ts";
import { traineeOf, withObjective } from "../train/trainee.ts";
import { type BrownLm, brownLm } from "./bases/language-model.ts";
import { type BrownFile, coarseTag, coarseTags, sentenceText } from "./data/brown.ts";
import type { Arm, Budget, Cell, Experiment, ExperimentContext, Metrics } from "./experiment.ts";
import { answerExample, exactMatches } from "./language.ts";

const sizes = {
  full: { task: 720, steps: 240, batchSize: 32, train: 4000, test: 2000 },
  quick: { task: 60, steps: 60, batchSize: 16, train: 256, test: 64 },
} as const;

type Size = (typeof sizes)[Budget];

const groups = ["abc", "defg", "hj", "klmnpr"] as const;
const answers = [...coarseTags, "press", "prose", "learned", "fiction"].map((name) => `<${name}>`);
const [marker, ask] = ["<mark>", "<ask>"];

interface Arms {
  readonly about: string;
  /** What it goes on with from the new adapter; none for the new adapter itself. */
  readonly objective?: "further" | MuscleOptions;
}

const arms: Readonly<Record<string, Arms>> = {
  new: { about: "the new task adapter, as it is" },
  further: { about: "trained further on the data for the same steps", objective: "further" },
  muscle: { about: "MUSCLE: old model where the student errs, else the new one", objective: {} },
  "all-old": { about: "distilled from the old model everywhere", objective: { mask: "old" } },
  "all-new": { about: "distilled from the new model everywhere", objective: { mask: "new" } },
  "old-correct": {
    about: "from the old model where that is right, else from the new one",
    objective: { mask: "old-correct" },
  },
  likelihood: {
    about: "from the old model where the student gives the answer less",
    objective: { mask: "likelihood" },
  },
};

interface Task {
  readonly train: readonly Example[];
  readonly test: readonly Example[];
}

interface Shared {
  readonly old: BrownLm;
  readonly near: BrownLm;
  readonly far: BrownLm;
  readonly tasks: Readonly<Record<string, Task>>;
}

type Ids = Readonly<Record<string, number>>;

/** Tokens of words, one of which may be marked. */
function wordsIds(
  base: BrownLm,
  special: Ids,
  words: readonly string[],
  marked?: number,
): number[] {
  const { tokenizer } = base;
  if (marked === undefined) return [...tokenizer.encode(sentenceText({ words }))];
  const [before, after] = [words.slice(0, marked), words.slice(marked)];
  const first = before.length > 0 ? [...tokenizer.encode(sentenceText({ words: before }))] : [];
  return [...first, special[marker]!, ...tokenizer.encode(` ${sentenceText({ words: after })}`)];
}

type Maker = (file: BrownFile, rng: Rng) => Example | undefined;

function makers(base: BrownLm, special: Ids): Readonly<Record<string, Maker>> {
  const sentenceOf = (file: BrownFile, rng: Rng, least: number) => {
    const sentence = file.sentences[rng.integer(file.sentences.length)]!;
    return sentence.words.length >= least ? sentence : undefined;
  };
  return {
    pos: (file, rng) => {
      const sentence = sentenceOf(file, rng, 8);
      if (!sentence) return undefined;
      const start = rng.integer(Math.max(1, sentence.words.length - 11));
      const words = sentence.words.slice(start, start + 12);
      const marked = rng.integer(words.length);
      const tag = coarseTag(sentence.tags[start + marked]!);
      const prompt = [...wordsIds(base, special, words, marked), special[ask]!];
      return answerExample(prompt, [special[`<${tag}>`]!]);
    },
    genre: (file, rng) => {
      const at = rng.integer(Math.max(1, file.sentences.length - 3));
      const words = file.sentences.slice(at, at + 4).flatMap((sentence) => sentence.words);
      if (words.length < 24) return undefined;
      const group = groups.findIndex((letters) => letters.includes(file.genre));
      const prompt = [...wordsIds(base, special, words.slice(0, 24)), special[ask]!];
      return answerExample(prompt, [special[answers[coarseTags.length + group]!]!]);
    },
    classes: (file, rng) => {
      const sentence = sentenceOf(file, rng, 8);
      if (!sentence) return undefined;
      const start = rng.integer(sentence.words.length - 7);
      const prompt = wordsIds(base, special, sentence.words.slice(start, start + 8));
      const tags = sentence.tags.slice(start, start + 8);
      const classes = tags.map((tag) => special[`<${coarseTag(tag)}>`]!);
      return answerExample([...prompt, special[ask]!], classes);
    },
  };
}

function examplesOf(files: readonly BrownFile[], make: Maker, count: number, rng: Rng): Example[] {
  const examples: Example[] = [];
  for (let tries = 0; examples.length < count && tries < count * 50; tries++) {
    const example = make(files[rng.integer(files.length)]!, rng);
    if (example) examples.push(example);
  }
  return examples;
}

/** LoRA on all linear layers; the tokens of answers, which the base never saw, are trained whole. */
const adapterOf = (base: BrownLm) =>
  lora(base.model, {
    rank: 8,
    alpha: 16,
    targetModules: "all-linear",
    trainableTokens: [marker, ask, ...answers].map((name) => base.tokenizer.tokenToId(name)!),
  });

async function trainTask(
  base: BrownLm,
  task: Task,
  size: Size,
  steps: number,
  seed: number,
  context: ExperimentContext,
  start: TensorRecord,
  other?: { readonly old: TensorRecord; readonly next: TensorRecord; readonly oldBase: BrownLm } & {
    readonly options: MuscleOptions;
  },
): Promise<TensorRecord> {
  const adapter = adapterOf(base);
  const plain = traineeOf(base.model, base.params, { adapter, params: start });
  const merged = (own: BrownLm, params: TensorRecord): TensorRecord => ({
    ...own.params,
    ...adapterOf(own).merge(own.params, params),
  });
  const trainee = other
    ? withObjective(
        plain,
        muscle(
          {
            old: { model: other.oldBase.model, params: merged(other.oldBase, other.old) },
            new: { model: base.model, params: merged(base, other.next) },
          },
          other.options,
        ),
      )
    : plain;
  const result = await finetune(trainee, task.train, context.backend, {
    steps,
    batchSize: size.batchSize,
    learningRate: 3e-3,
    seed,
    signal: context.signal,
    onStep: ({ step, loss }) => {
      if (step % 20 === 0) context.progress(`step ${step}/${steps}, loss ${loss.toFixed(3)}`);
    },
  });
  context.signal.throwIfAborted();
  return result.params;
}

/** What a model answers: right or wrong of single tokens, texts of classes. */
async function answersOf(
  base: BrownLm,
  params: TensorRecord,
  test: readonly Example[],
  isText: boolean,
  context: ExperimentContext,
): Promise<{ readonly isRight: readonly number[]; readonly texts: readonly string[] }> {
  const adapter = { adapter: adapterOf(base), params };
  if (!isText) {
    const scorer = new Scorer(base.model, base.params, context.backend, adapter);
    try {
      const { isRight } = await exactMatches(scorer, test, { signal: context.signal });
      return { isRight: isRight.map(Number), texts: [] };
    } finally {
      await scorer.release();
    }
  }
  const decoder = new Decoder(base.model, base.params, context.backend, {
    adapter,
    prepack: false,
  });
  const texts: string[] = [];
  try {
    for (let start = 0; start < test.length; start += 128) {
      const prompts = test
        .slice(start, start + 128)
        .map(({ ids, mask }) => ids.slice(0, mask.indexOf(1)));
      const made = await decoder.generate(prompts, { maxNewTokens: 8, temperature: 0 });
      context.signal.throwIfAborted();
      texts.push(...made.map((ids) => Array.from(ids).join(" ")));
    }
  } finally {
    await decoder.release();
  }
  return { isRight: [], texts };
}

/** 1 - edit distance / longer length, of tokens apart by spaces. */
export function editSimilarity(a: string, b: string): number {
  const [x, y] = [a.split(" "), b.split(" ")];
  let row = Array.from({ length: y.length + 1 }, (_, i) => i);
  for (let i = 1; i <= x.length; i++) {
    const next = [i];
    for (let j = 1; j <= y.length; j++) {
      const change = row[j - 1]! + Number(x[i - 1] !== y[j - 1]);
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, change));
    }
    row = next;
  }
  return 1 - row[y.length]! / Math.max(x.length, y.length);
}

export const experiment: Experiment<Shared> = {
  id: "muscle",
  title: "MUSCLE",
  version: "3",
  metrics: {
    negativeFlips:
      "share of test items that the old model has right and this one wrong (worse, for classes)",
    positiveFlips: "share that the old model has wrong and this one right (better, for classes)",
    accuracy: "share of test items that are right (mean similarity, for classes)",
    oldAccuracy: "the old model's accuracy",
  },
  needs: { data: ["brown"], bases: ["brownLm"] },
  plan: (budget) => {
    const { task, steps, batchSize } = sizes[budget];
    return {
      arms: Object.entries(arms).map(([name, { about, objective }]): Arm => {
        const all = task + (objective ? steps : 0);
        return {
          name,
          about,
          cost: { steps: all, examples: all * batchSize },
        };
      }),
      tasks: ["pos-near", "genre-near", "pos-far", "classes-near"],
      ...(budget === "quick" && { seeds: 1 }),
    };
  },
  open: async (context) => {
    const isQuick = context.budget === "quick";
    const shape = {
      dModel: isQuick ? 32 : 64,
      nLayers: 2,
      maxPositions: 128,
      steps: isQuick ? 40 : 1200,
      specialTokens: [marker, ask, ...answers],
    };
    const old = await brownLm(context, { ...shape, half: 0, seed: 1 });
    const near = await brownLm(context, { ...shape, half: 1, seed: 2 });
    const far = await brownLm(context, {
      ...shape,
      dModel: isQuick ? 48 : 96,
      steps: 2 * shape.steps,
      seed: 3,
    });
    const special: Record<string, number> = {};
    for (const name of [marker, ask, ...answers]) special[name] = old.tokenizer.tokenToId(name)!;
    const { train, test } = sizes[context.budget];
    const files = far.trainFiles;
    const rng = new Rng(5).fold("muscle");
    const tasks = Object.fromEntries(
      Object.entries(makers(old, special)).map(([name, make]) => [
        name,
        {
          train: examplesOf(files, make, train, rng.fold(name, "train")),
          test: examplesOf(far.heldOutFiles, make, test, rng.fold(name, "test")),
        },
      ]),
    );
    return { old, near, far, tasks };
  },
  run: async (cell: Cell, shared, context): Promise<Metrics> => {
    const size = sizes[context.budget];
    const [name, update] = cell.task.split("-") as [string, "near" | "far"];
    const task = shared.tasks[name]!;
    const base = shared[update];
    const fresh = async (own: BrownLm): Promise<TensorRecord> => {
      const scene = weightsScene(own.model, own.params, new Rng(cell.seed).fold("adapter"));
      return (await firstNumbers(adapterOf(own), scene)).params;
    };
    const first = (own: BrownLm, which: string): Promise<TensorRecord> =>
      context.remember(
        { which, task: name, steps: size.task, base: own.hash, seed: cell.seed },
        async () => trainTask(own, task, size, size.task, cell.seed, context, await fresh(own)),
      );
    const old = await first(shared.old, "old");
    const next = await first(base, "new");
    const { objective } = arms[cell.arm]!;
    const params = !objective
      ? next
      : await trainTask(
          base,
          task,
          size,
          size.steps,
          cell.seed + 1000,
          context,
          next,
          objective === "further"
            ? undefined
            : { old, next, oldBase: shared.old, options: objective },
        );
    const isText = name === "classes";
    const before = await answersOf(shared.old, old, task.test, isText, context);
    const after = await answersOf(base, params, task.test, isText, context);
    const report = isText
      ? textCompatibility(
          before.texts,
          after.texts,
          task.test.map(({ ids, mask }) => Array.from(ids.slice(mask.indexOf(1))).join(" ")),
          editSimilarity,
        )
      : choiceCompatibility(
          before.isRight,
          after.isRight,
          after.isRight.map(() => 1),
        );
    return {
      negativeFlips: report.negativeFlips.value,
      positiveFlips: report.positiveFlips.value,
      accuracy: report.new.value,
      oldAccuracy: report.old.value,
    };
  },
};
