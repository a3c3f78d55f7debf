/**
 * MUSCLE: an adapter for an updated model that stays right where the new one is, and agrees with the old one
 * where it is wrong.
 *
 * Echterhoff et al., "MUSCLE: A Model Update Strategy for Compatible LLM Evolution", Findings of EMNLP 2024,
 * arXiv:2407.09435.
 *
 *   m_i = 1[argmax z^C_i ≠ y_i]                                                   the student errs
 *   L   = 1/n Σ_i m_i KL(σ(z¹_i / T) ‖ σ(z^C_i / T)) + (1 - m_i) KL(σ(z²_i / T) ‖ σ(z^C_i / T)) + λ CE(y)
 *
 *   z¹, z², z^C → old, new, student   logits (N, V) of the old task model, the new one, and what is trained
 *   y           → targets             (N,) int32
 *   T, λ        → temperature, ceWeight
 *
 * The mask is of the student in training, anew at each step, without gradient; a mean over answer tokens.
 * Start from the new task model's adapter. Differs: T is not stated in the paper, 1 here; λ is 0 unless given,
 * for pairs whose accuracies are far apart. Cost: a forward pass of each of the two other models.
 */
import type { Example } from "../../data/example.ts";
import { OptionError } from "../../errors.ts";
import { add, cast, lessOrEqual, mul, notEqual, stopGradient, sub } from "../../ir/elementwise.ts";
import { crossEntropyRows, softmax } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { gatherElements } from "../../ir/indexing.ts";
import { squeeze, unsqueeze } from "../../ir/layout.ts";
import { argMax, sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { makeBatch } from "../../train/batches.ts";
import { packedOptions } from "../../train/causal-lm.ts";
import type { Objective } from "../../train/objective.ts";
import {
  checkTeacher,
  divergenceRows,
  type Teacher,
  teacherLogits,
  teacherWeights,
} from "../../train/objectives/distill.ts";
import { defineMethod, type Method } from "../method.ts";

export const muscleMasks: readonly ["student", "old", "new", "old-correct", "likelihood"] = [
  "student",
  "old",
  "new",
  "old-correct",
  "likelihood",
];

export interface MuscleOptions {
  /** T: divides all logits. */
  readonly temperature?: number;
  /** λ: weight of the data's cross-entropy. */
  readonly ceWeight?: number;
  /**
   * Where the old model is followed: where the student errs (the paper's), always, never, where the old one
   * is right, or where the student gives the answer less than the old one does.
   */
  readonly mask?: (typeof muscleMasks)[number];
}

const muscleOptions = {
  temperature: {
    type: "number",
    default: 1,
    range: [0.01, 100],
    about: "divides the logits of all three models",
  },
  ceWeight: {
    type: "number",
    default: 0,
    range: [0, 100],
    about: "weight of the data's own cross-entropy; 0.5 where old and new accuracy are far apart",
  },
  mask: {
    type: "text",
    default: "student",
    choices: muscleMasks,
    about: "where the old model is followed; student: where the student errs",
  },
} as const satisfies OptionSpecs<MuscleOptions>;

/** 1 where the old model is followed, (N,), without gradient. */
export function followsOld(
  mask: (typeof muscleMasks)[number],
  student: Value,
  old: Value,
  targets: Value,
): Value {
  const errs = cast(notEqual(argMax(student, -1), targets), student.dtype);
  switch (mask) {
    case "student":
      return stopGradient(errs);
    case "old":
      return add(mul(stopGradient(errs), 0), 1);
    case "new":
      return mul(stopGradient(errs), 0);
    case "old-correct":
      return sub(1, cast(notEqual(argMax(old, -1), targets), student.dtype));
    case "likelihood": {
      const ofTarget = (logits: Value): Value =>
        squeeze(gatherElements(softmax(logits, -1), unsqueeze(targets, 1), -1), 1);
      const isLess = sub(1, cast(lessOrEqual(ofTarget(old), ofTarget(student)), student.dtype));
      return stopGradient(isLess);
    }
  }
}

/**
 * The old and the new task model run beside the student in one step.
 * @throws OptionError for options outside their range.
 */
export function muscle(
  models: { readonly old: Teacher; readonly new: Teacher },
  given: MuscleOptions = {},
): Objective<LanguageModel, Example> {
  const { temperature, ceWeight, mask } = readOptions<MuscleOptions, typeof muscleOptions>(
    "muscle",
    muscleOptions,
    given,
  );
  if (models.old.params === models.new.params) {
    throw new OptionError("muscle: the old and the new model are one — give two versions.");
  }
  return {
    name: "muscle",
    canPack: true,
    frozen: { ...teacherWeights(models.old, "old."), ...teacherWeights(models.new, "new.") },
    batch: (examples: readonly Example[], shape) => makeBatch(examples, shape),
    loss: ({ model, context, values }, batch) => {
      checkTeacher("muscle: old model", models.old, model);
      checkTeacher("muscle: new model", models.new, model);
      const how = packedOptions(batch);
      const { ids, targets, weights } = batch as Record<"ids" | "targets" | "weights", Value>;
      const student = model.forward(context, ids, how).logits;
      const old = teacherLogits(models.old, values, ids, how, "old.");
      const next = teacherLogits(models.new, values, ids, how, "new.");
      const follows = followsOld(mask, student, old, targets);
      const toOld = divergenceRows(student, old, { temperature });
      const toNew = divergenceRows(student, next, { temperature });
      const rows = add(mul(follows, toOld), mul(sub(1, follows), toNew));
      const nll = crossEntropyRows(student, targets);
      const total = (of: Value): Value => sum(mul(of, weights));
      const hits = cast(notEqual(argMax(student, -1), targets), student.dtype);
      return {
        sum: total(ceWeight === 0 ? rows : add(rows, mul(nll, ceWeight))),
        metrics: {
          correct: total(sub(1, hits)),
          followsOld: total(follows),
          nll: total(nll),
        },
      };
    },
  };
}

export const muscleMethod: Method<MuscleOptions> = defineMethod<MuscleOptions>({
  id: "muscle",
  number: 36,
  title: "MUSCLE",
  capability: "distill",
  summary:
    "Trains an adapter for a model's new version that keeps its accuracy and repeats fewer new mistakes.",
  paper: {
    title: "MUSCLE: A Model Update Strategy for Compatible LLM Evolution",
    year: 2024,
    url: "https://arxiv.org/abs/2407.09435",
  },
  implementation: "faithful",
  claim: "doesNotHold",
  buildsOn: ["distill"],
  options: muscleOptions,
  roles: {
    objective: {
      data: "any",
      models: ["old-model", "new-model"],
      make: ({ others }, options) =>
        muscle({ old: others["old-model"]!, new: others["new-model"]! }, options),
    },
  },
});
