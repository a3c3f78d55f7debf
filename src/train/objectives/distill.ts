/**
 * Distillation: a student takes on a teacher's distribution of the next token.
 *
 * Hinton et al. 2015, arXiv:1503.02531 (forward KL); Gu et al., "MiniLLM", ICLR 2024, arXiv:2306.08543
 * (reverse KL); Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024,
 * arXiv:2306.13649, eq. 1 (generalised JSD); Ko et al., "DistiLLM", ICML 2024, arXiv:2402.03898, eq. 3 and
 * 6 (skew KL); Wen et al., "f-Divergence Minimization", ACL 2023, arXiv:2307.15190 (total variation); Wu et
 * al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation", 2024, arXiv:2404.02657 (adaptive).
 *
 *   p → the teacher's, q → the student's probabilities, both of logits / temperature
 *
 *   forward       KL(p ‖ q)
 *   reverse       KL(q ‖ p)
 *   jsd           β KL(p ‖ m) + (1 - β) KL(q ‖ m),  m = β p + (1 - β) q
 *   skew-forward  KL(p ‖ α p + (1 - α) q)
 *   skew-reverse  KL(q ‖ α q + (1 - α) p)
 *   tvd           ½ Σ |p - q|
 *   adaptive      (g_h KL(p ‖ q) + g_t KL(q ‖ p)) / (g_h + g_t), g_h = Σ |p - q| over the teacher's head: the
 *                 likeliest tokens, down to where those less likely hold a share μ = ½ of its mass; g_t over
 *                 the rest; both without gradient
 *
 * Each is a sum over the vocabulary, and the loss the mean over tokens that carry loss. No factor τ²
 * stands before it, as in GKD and TRL; beta 0 of TRL's loss is "forward" and 1 is "reverse".
 */
import type { Example } from "../../data/example.ts";
import { OptionError } from "../../errors.ts";
import {
  abs,
  add,
  cast,
  div,
  equal,
  exp,
  greaterOrEqual,
  log,
  maximum,
  mul,
  stopGradient,
  sub,
} from "../../ir/elementwise.ts";
import { crossEntropyRows, logSoftmax } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { gatherElements } from "../../ir/indexing.ts";
import { argMax, cumSum, sort, sum } from "../../ir/reduce.ts";
import type { ForwardOptions, LanguageModel } from "../../models/model.ts";
import { klDivergence } from "../../nn/losses.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import { makeBatch } from "../batches.ts";
import { packedOptions } from "../causal-lm.ts";
import type { Objective, Scene } from "../objective.ts";
import { below } from "../program.ts";
import { checkIn } from "./preference.ts";

export const divergences = [
  "forward",
  "reverse",
  "jsd",
  "skew-forward",
  "skew-reverse",
  "tvd",
  "adaptive",
] as const;
export type Divergence = (typeof divergences)[number];

export interface DivergenceOptions {
  /** Default "forward". */
  readonly divergence?: Divergence;
  /** Of "jsd": the teacher's share of the mixture, in (0, 1); default 0.5. */
  readonly beta?: number;
  /** Of the skew ones: share of the own distribution in the mixture, in [0, 1); default 0.1. */
  readonly alpha?: number;
  /** Divides both models' logits, above 0; default 1. */
  readonly temperature?: number;
}

/** A frozen model with the student's vocabulary. */
export interface Teacher {
  readonly model: LanguageModel;
  readonly params: TensorRecord;
}

export interface DistillOptions extends DivergenceOptions {
  readonly teacher: Teacher;
  /** Adds so many times the cross-entropy of the data's tokens; default 0. */
  readonly nllWeight?: number;
}

/** log(share e^a + (1 - share) e^b), without overflow. */
function logMixture(a: Value, b: Value, share: number): Value {
  if (share === 0) return b;
  const top = stopGradient(maximum(a, b));
  const mixed = add(mul(exp(sub(a, top)), share), mul(exp(sub(b, top)), 1 - share));
  return add(top, log(mixed));
}

/**
 * The divergence of each row's distributions.
 * @param student logits (N, V) @param teacher logits (N, V)
 * @returns (N,)
 */
export function divergenceRows(
  student: Value,
  teacher: Value,
  options: DivergenceOptions = {},
): Value {
  const { divergence = "forward", beta = 0.5, alpha = 0.1, temperature = 1 } = options;
  const logOf = (logits: Value): Value =>
    logSoftmax(temperature === 1 ? logits : div(logits, temperature), -1);
  const [p, q] = [logOf(teacher), logOf(student)];
  switch (divergence) {
    case "forward":
      return klDivergence(p, q, "none");
    case "reverse":
      return klDivergence(q, p, "none");
    case "jsd": {
      const mixture = logMixture(p, q, beta);
      const own = mul(klDivergence(q, mixture, "none"), 1 - beta);
      return add(mul(klDivergence(p, mixture, "none"), beta), own);
    }
    case "skew-forward":
      return klDivergence(p, logMixture(p, q, alpha), "none");
    case "skew-reverse":
      return klDivergence(q, logMixture(q, p, alpha), "none");
    case "tvd":
      return mul(sum(abs(sub(exp(p), exp(q))), -1), 0.5);
    case "adaptive": {
      const share = headShare(stopGradient(p), stopGradient(q));
      const reverse = mul(klDivergence(q, p, "none"), sub(1, share));
      return add(mul(klDivergence(p, q, "none"), share), reverse);
    }
  }
}

/** g_h / (g_h + g_t) of each row, by log-probabilities of teacher and student. */
function headShare(p: Value, q: Value): Value {
  const { values: ascending, indices: order } = sort(exp(p), -1);
  const gaps = gatherElements(abs(sub(exp(p), exp(q))), order, -1);
  const isHead = cast(greaterOrEqual(cumSum(ascending, -1), 0.5), p.dtype);
  const total = sum(gaps, -1);
  // Equal distributions have no gap: both parts are then 0, whatever their share.
  return div(sum(mul(gaps, isHead), -1), maximum(total, 1e-12));
}

/** @throws OptionError for settings outside their range. */
export function checkDivergence(where: string, options: DivergenceOptions): void {
  const { divergence = "forward", beta = 0.5, alpha = 0.1, temperature = 1 } = options;
  if (!divergences.includes(divergence)) {
    throw new OptionError(
      `${where}: unknown divergence "${divergence}" — known are ${divergences.join(", ")}.`,
    );
  }
  checkIn(`${where}: beta`, beta, 1e-6, 1 - 1e-6);
  checkIn(`${where}: alpha`, alpha, 0, 1 - 1e-6);
  checkIn(`${where}: temperature`, temperature, 1e-3, 1e3);
}

const teacherPrefix = "teacher.";

/** A teacher's weights as an objective keeps them, under a name of its own. */
export function teacherWeights({ params }: Teacher, prefix: string = teacherPrefix): TensorRecord {
  return Object.fromEntries(
    Object.entries(params).map(([path, tensor]) => [`${prefix}${path}`, tensor]),
  );
}

/** The teacher's logits for the rows that are wanted: (N, V), without gradient. */
export function teacherLogits(
  { model }: Teacher,
  values: ValueRecord,
  ids: Value,
  options: ForwardOptions,
  prefix: string = teacherPrefix,
): Value {
  return stopGradient(model.forward(model.context(below(prefix, values)), ids, options).logits);
}

/** @throws OptionError when the vocabularies differ, or the teacher takes fewer positions. */
export function checkTeacher(where: string, teacher: Teacher, student: LanguageModel): void {
  const [own, other] = [student.sizes, teacher.model.sizes];
  if (own.vocabSize !== other.vocabSize) {
    throw new OptionError(
      `${where}: the teacher has ${other.vocabSize} tokens and the model ${own.vocabSize} — both must share one tokenizer.`,
    );
  }
}

/**
 * Student and teacher run in one step on the same examples.
 * @throws OptionError for settings outside their range.
 */
export function distill(options: DistillOptions): Objective<LanguageModel, Example> {
  const { teacher, nllWeight = 0 } = options;
  checkDivergence("distill", options);
  checkIn("distill: nllWeight", nllWeight, 0, 100);
  const logitsOf = (
    { model, context, values }: Scene<LanguageModel>,
    batch: ValueRecord,
  ): { student: Value; taught: Value } => {
    const how = packedOptions(batch);
    return {
      student: model.forward(context, batch["ids"]!, how).logits,
      taught: teacherLogits(teacher, values, batch["ids"]!, how),
    };
  };
  return {
    name: "distill",
    canPack: true,
    frozen: teacherWeights(teacher),
    batch: (examples: readonly Example[], shape) => makeBatch(examples, shape),
    loss: (scene, batch) => {
      checkTeacher("distill", teacher, scene.model);
      const { student, taught } = logitsOf(scene, batch);
      const { targets, weights } = batch as Record<"targets" | "weights", Value>;
      const rows = divergenceRows(student, taught, options);
      const nll = crossEntropyRows(student, targets);
      const total = (values: Value): Value => sum(mul(values, weights));
      const hits = cast(equal(argMax(student, 1), targets), student.dtype);
      return {
        sum: total(nllWeight === 0 ? rows : add(rows, mul(nll, nllWeight))),
        metrics: {
          correct: total(hits),
          agreement: total(cast(equal(argMax(student, 1), argMax(taught, 1)), student.dtype)),
          divergence: total(rows),
          nll: total(nll),
        },
      };
    },
  };
}
