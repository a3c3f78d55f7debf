/**
 * TAID against the divergences it wants to replace: small students of two teachers on the Brown corpus.
 *
 * Shing et al., ICLR 2025, arXiv:2501.16937. Every arm starts from the same student, sees the same batches for
 * the same steps, and has its learning rate chosen from the same two. As 300 steps are far fewer than the paper's,
 * the adaptive schedule's alpha is 5e-4 times the ratio of steps, as its specification asks.
 */

import type { Example } from "../data/example.ts";
import { Decoder } from "../infer/decoder.ts";
import { Scorer } from "../infer/score.ts";
import { cast, exp, greaterOrEqual, mul } from "../ir/elementwise.ts";
import { logSoftmax } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gatherElements } from "../ir/indexing.ts";
import { cumSum, sort, sum } from "../ir/reduce.ts";
import { taid } from "../methods/distill/taid.ts";
import { Llama } from "../models/llama.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { makeBatch } from "../train/batches.ts";
import { causalLm, packedOptions } from "../train/causal-lm.ts";
import { finetune } from "../train/finetune.ts";
import type { Objective } from "../train/objective.ts";
import {
  type Divergence,
  distill,
  divergenceRows,
  type Teacher,
  teacherLogits,
  teacherWeights,
} from "../train/objectives/distill.ts";
import { type Trainee, TrainProgram } from "../train/program.ts";
import { traineeOf, withObjective } from "../train/trainee.ts";
import { brownLm, type LmBase, tokensOf } from "./bases/language-model.ts";
import { textOf } from "./data/brown.ts";
import type { Arm, Budget, Cell, Experiment, ExperimentContext, Metrics } from "./experiment.ts";
import { answerExample, windowExamples } from "./language.ts";

const sizes = {
  full: { steps: 300, batchSize: 16, seqLen: 64, heldOut: 256, samples: 64 },
  quick: { steps: 12, batchSize: 8, seqLen: 32, heldOut: 16, samples: 8 },
} as const;

/** Steps that the paper's alpha is taken to be for; the release does not say how many its runs had. */
const paperSteps = 1e4;

const arms: Readonly<Record<string, string>> = {
  text: "cross-entropy on the text, no teacher",
  forward: "KL(teacher ‖ student)",
  reverse: "KL(student ‖ teacher)",
  tvd: "total variation",
  adaptive: "adaptive KL: forward and reverse, weighed by gaps on the teacher's head and tail",
  "skew-forward": "KL(teacher ‖ 0.1 teacher + 0.9 student)",
  "taid-linear": "TAID, t by the linear schedule alone",
  taid: "TAID, t moves faster while the loss falls",
};

interface Shared {
  readonly teachers: Readonly<Record<string, LmBase>>;
  readonly examples: readonly Example[];
  readonly heldOut: readonly Example[];
  readonly bytesPerToken: number;
}

function studentOf(vocabSize: number): LanguageModel {
  return new Llama({
    vocabSize,
    dModel: 48,
    nLayers: 2,
    nHeads: 2,
    nKvHeads: 2,
    dFeedForward: 144,
    maxPositions: 256,
    tieEmbeddings: true,
  });
}

function objectiveOf(
  arm: string,
  teacher: Teacher,
  steps: number,
): Objective<LanguageModel, Example> {
  switch (arm) {
    case "text":
      return causalLm;
    case "taid":
    case "taid-linear":
      return taid(teacher, {
        alpha: Math.min(1, (5e-4 * paperSteps) / steps),
        adaptive: arm === "taid",
      });
    default:
      // DistiLLM's alpha is the teacher's share; ours is of the own distribution, the first of the pair.
      return distill({ teacher, divergence: arm as Divergence, alpha: 0.1 });
  }
}

/** What is measured of a student beside its teacher, per token of held-out text; learns nothing. */
function diagnosis(teacher: Teacher): Objective<LanguageModel, Example> {
  return {
    name: "diagnosis",
    frozen: teacherWeights(teacher),
    batch: (examples: readonly Example[], shape) => makeBatch(examples, shape),
    loss: ({ model, context, values }, batch) => {
      const how = packedOptions(batch);
      const { ids, weights } = batch as Record<"ids" | "weights", Value>;
      const student = model.forward(context, ids, how).logits;
      const taught = teacherLogits(teacher, values, ids, how);
      const [q, p] = [exp(logSoftmax(student, -1)), exp(logSoftmax(taught, -1))];
      const { values: ascending, indices } = sort(p, -1);
      const isHead = cast(greaterOrEqual(cumSum(ascending, -1), 0.5), q.dtype);
      const head = sum(mul(gatherElements(q, indices, -1), isHead), -1);
      const total = (rows: Value): Value => sum(mul(rows, weights));
      return {
        sum: causalLm.loss({ model, context, values } as never, batch).sum,
        metrics: {
          klForward: total(divergenceRows(student, taught)),
          klReverse: total(divergenceRows(student, taught, { divergence: "reverse" })),
          headMass: total(head),
        },
      };
    },
  };
}

async function diagnose(
  student: LanguageModel,
  params: TensorRecord,
  teacher: Teacher,
  { heldOut }: Shared,
  context: ExperimentContext,
): Promise<Record<"nll" | "klForward" | "klReverse" | "headMass", number>> {
  const objective = diagnosis(teacher);
  const trainee = withObjective(traineeOf(student, params), objective) as Trainee;
  const program = new TrainProgram(trainee, context.backend);
  const sums: Record<string, number> = { nll: 0, klForward: 0, klReverse: 0, headMass: 0 };
  let weight = 0;
  try {
    for (let start = 0; start < heldOut.length; start += 16) {
      context.signal.throwIfAborted();
      const batch = objective.batch(heldOut.slice(start, start + 16) as never, { rows: 16 });
      const { loss, metrics, weight: own } = await program.evaluate(batch, params);
      sums["nll"]! += loss;
      for (const [name, value] of Object.entries(metrics)) sums[name]! += value;
      weight += own;
    }
  } finally {
    await program.release();
  }
  return Object.fromEntries(
    Object.entries(sums).map(([name, value]) => [name, value / weight]),
  ) as Record<"nll" | "klForward" | "klReverse" | "headMass", number>;
}

/** The student's own text: how likely its teacher finds it, and how many of its word pairs are different. */
async function judgeSamples(
  student: LanguageModel,
  params: TensorRecord,
  teacher: LmBase,
  cell: Cell,
  { heldOut }: Shared,
  context: ExperimentContext,
): Promise<{ sampleNll: number; distinct2: number }> {
  const { samples } = sizes[context.budget];
  const decoder = new Decoder(student, params, context.backend, { prepack: false });
  const prompts = heldOut.slice(0, samples).map(({ ids }) => ids.slice(0, 8));
  let made: Int32Array[];
  try {
    made = await decoder.generate(prompts, {
      maxNewTokens: 24,
      temperature: 1,
      seed: cell.seed,
      signal: context.signal,
    });
  } finally {
    await decoder.release();
  }
  const texts = made.flatMap((ids, i) => (ids.length > 1 ? [answerExample(prompts[i]!, ids)] : []));
  const scorer = new Scorer(teacher.model, teacher.params, context.backend);
  try {
    const scores = await scorer.score(texts, { batchSize: 32 });
    const all = scores.flatMap(({ logprobs }) => [...logprobs]);
    const pairs = made.flatMap((ids) =>
      Array.from(ids)
        .slice(1)
        .map((id, i) => `${ids[i]} ${id}`),
    );
    return {
      sampleNll: -all.reduce((a, b) => a + b, 0) / Math.max(1, all.length),
      distinct2: new Set(pairs).size / Math.max(1, pairs.length),
    };
  } finally {
    await scorer.release();
  }
}

export const experiment: Experiment<Shared> = {
  id: "taid",
  title: "TAID",
  version: "1",
  metrics: {
    bitsPerByte: "of held-out text",
    gap: "bits per byte above the teacher's",
    klForward: "KL(teacher ‖ student) on held-out text, nats per token",
    klReverse: "KL(student ‖ teacher) on held-out text, nats per token",
    headMass: "the student's mass on the likelier half of the teacher's mass",
    sampleNll: "-log p of the student's own samples by the teacher, nats per token",
    distinct2: "share of different token pairs in the samples",
  },
  needs: { data: ["brown"], bases: ["brownLm"] },
  plan: (budget: Budget) => {
    const { steps, batchSize } = sizes[budget];
    const cost = { steps, examples: steps * batchSize };
    const rates = [3e-3, 8e-3].map((learningRate) => ({ learningRate }));
    return {
      arms: Object.entries(arms).map(([name, about]): Arm => ({ name, about, cost })),
      tasks: ["middle", "large"],
      tuning: {
        metric: "bitsPerByte",
        direction: "lower",
        grid: Object.fromEntries(Object.keys(arms).map((name) => [name, rates])),
        tasks: ["middle"],
      },
      ...(budget === "quick" && { seeds: 1 }),
    };
  },
  open: async (context) => {
    const { seqLen, heldOut } = sizes[context.budget];
    const isQuick = context.budget === "quick";
    const teacher = (dModel: number): Promise<LmBase> =>
      brownLm(context, { dModel: isQuick ? 48 : dModel, nLayers: isQuick ? 2 : 4, seed: dModel });
    const middle = await brownLm(context, {
      ...(isQuick ? { dModel: 48, nLayers: 2 } : { dModel: 96, nLayers: 4 }),
    });
    const large = await teacher(192);
    const { tokenizer, trainFiles, heldOutFiles } = middle;
    const texts = heldOutFiles.map(textOf);
    const tokens = tokensOf(tokenizer, texts);
    const bytes = new TextEncoder().encode(texts.join("")).length;
    const windows = windowExamples(tokens, seqLen);
    // Every n-th window, so that all files are among them.
    const every = Math.max(1, Math.floor(windows.length / heldOut));
    return {
      teachers: { middle, large },
      examples: windowExamples(tokensOf(tokenizer, trainFiles.map(textOf)), seqLen),
      heldOut: windows.filter((_, i) => i % every === 0).slice(0, heldOut),
      bytesPerToken: bytes / tokens.length,
    };
  },
  run: async (cell, shared, context): Promise<Metrics> => {
    const { steps, batchSize } = sizes[context.budget];
    const teacher = shared.teachers[cell.task]!;
    const student = studentOf(teacher.model.sizes.vocabSize);
    const { params } = student.init(new Rng(cell.seed).fold("student"));
    const trainee = withObjective(
      traineeOf(student, params),
      objectiveOf(cell.arm, teacher, steps),
    );
    const result = await finetune(trainee, shared.examples, context.backend, {
      steps,
      batchSize,
      learningRate: cell.settings["learningRate"] as number,
      schedule: "cosine",
      seed: cell.seed,
      signal: context.signal,
      onStep: ({ step, loss }) => {
        if (step % 10 === 0) context.progress(`step ${step}/${steps}, loss ${loss.toFixed(3)}`);
      },
    });
    context.signal.throwIfAborted();
    const { nll, ...rest } = await diagnose(student, result.params, teacher, shared, context);
    const own = await diagnose(teacher.model, teacher.params, teacher, shared, context);
    const toBits = 1 / Math.LN2 / shared.bytesPerToken;
    return {
      bitsPerByte: nll * toBits,
      gap: (nll - own.nll) * toBits,
      ...rest,
      ...(await judgeSamples(student, result.params, teacher, cell, shared, context)),
    };
  },
};
