/**
 * TAID: a student is trained toward a distribution that moves from near its own to its teacher's.
 *
 * Shing et al., "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in
 * Language Models", ICLR 2025, arXiv:2501.16937.
 *
 *   p_t = softmax((1 - t) sg(z_q) + t z_p)                  target, between student and teacher    (eq. 3)
 *   J   = mean over tokens of - Σ_v p_t(v) log q(v)         loss
 *   δ   = (J_{n-1} - J_n) / J_{n-1}                         relative change of the loss            (eq. 6)
 *   m  ← β m + (1 - β) δ                                    momentum
 *   t  ← min(t_end, max(t_lin, t + α σ(m) (1 - t)))         t_lin = t_start + (t_end - t_start) n / N
 *
 *   z_q, z_p → student, teacher   logits (N, V)
 *   t, J, m  → state              (3,), after each optimiser step
 *
 * Follows the authors' release: the loss is the cross-entropy with p_t (its gradient is that of KL(p_t ‖ q)),
 * the first step only notes J. Differs: α is given for the length of the run at hand, as 5e-4 hardly outruns
 * t_lin in a short one; with `nllWeight` the schedule reads the mixed loss. Cost: a forward pass of the teacher.
 */
import type { StepHook } from "../../adapters/hook.ts";
import type { Example } from "../../data/example.ts";
import { add, mul, neg, stopGradient, sub } from "../../ir/elementwise.ts";
import { crossEntropyRows, logSoftmax, softmax } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { slice } from "../../ir/layout.ts";
import { sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { Tensor } from "../../tensor/tensor.ts";
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

export interface TaidOptions {
  /** t at the first step. */
  readonly tStart?: number;
  /** t at the last step. */
  readonly tEnd?: number;
  /** Speed of t beyond the linear schedule. */
  readonly alpha?: number;
  /** Of the momentum of the loss's relative change. */
  readonly beta?: number;
  /** Only the linear schedule when false. */
  readonly adaptive?: boolean;
  /** Adds so many times the cross-entropy of the data's tokens. */
  readonly nllWeight?: number;
}

const taidOptions = {
  tStart: {
    type: "number",
    default: 0.4,
    range: [0, 1],
    open: [false, true],
    about: "share of the teacher at first",
  },
  tEnd: {
    type: "number",
    default: 1,
    range: [0, 1],
    open: [true, false],
    about: "share of the teacher at last",
  },
  alpha: {
    type: "number",
    default: 5e-4,
    range: [0, 1],
    about: "speed beyond the linear schedule; the paper's 5e-4 is for some 10,000 steps",
  },
  beta: {
    type: "number",
    default: 0.99,
    range: [0, 1],
    open: [false, true],
    about: "momentum of the loss's relative change",
  },
  adaptive: { type: "flag", default: true, about: "move faster while the loss falls" },
  nllWeight: {
    type: "number",
    default: 0,
    range: [0, 100],
    about: "weight of the data's own cross-entropy",
  },
} as const satisfies OptionSpecs<TaidOptions>;

/** Where the schedule stands. */
export interface TaidState {
  readonly t: number;
  /** The last step's loss; infinite before the first. */
  readonly loss: number;
  readonly momentum: number;
}

/**
 * The state after a step (eq. 6 and 7).
 * @param loss of the step @param progress steps before it / all steps
 */
export function advance(
  { t, loss: last, momentum }: TaidState,
  loss: number,
  progress: number,
  { tStart, tEnd, alpha, beta, adaptive }: Required<Omit<TaidOptions, "nllWeight">>,
): TaidState {
  if (last === Infinity) return { t, loss, momentum };
  const linear = tStart + (tEnd - tStart) * progress;
  const change = (last - loss) / (last + 1e-15);
  const next = beta * momentum + (1 - beta) * change;
  const step = (alpha * (1 - t)) / (1 + Math.exp(-next));
  return {
    t: adaptive ? Math.min(tEnd, Math.max(linear, t + step)) : linear,
    loss,
    momentum: next,
  };
}

/**
 * - Σ_v p_t(v) log q(v) of each row.
 * @param student logits (N, V) @param teacher logits (N, V) @param t scalar
 * @returns (N,)
 */
export function taidRows(student: Value, teacher: Value, t: Value): Value {
  const own = mul(stopGradient(student), sub(1, t));
  const target = softmax(add(own, mul(teacher, t)), -1);
  return neg(sum(mul(target, logSoftmax(student, -1)), -1));
}

const stateName = "taid.state";

function schedule(options: Required<Omit<TaidOptions, "nllWeight">>): StepHook {
  return {
    changes: [stateName],
    after: ({ step, steps, loss, buffers }) => {
      const [t, last, momentum] = buffers[stateName]!.data as Float32Array;
      // The sign stands for "no loss yet": checkpoints hold finite numbers.
      const before = { t: t!, loss: last! < 0 ? Infinity : last!, momentum: momentum! };
      const next = advance(before, loss, (step - 1) / steps, options);
      const numbers = Float32Array.of(next.t, next.loss, next.momentum);
      return {
        buffers: { [stateName]: new Tensor("float32", [3], numbers) },
        metrics: { t: next.t },
      };
    },
  };
}

/**
 * Student and teacher run in one step on the same examples.
 * @throws OptionError for options outside their range.
 */
export function taid(teacher: Teacher, given: TaidOptions = {}): Objective<LanguageModel, Example> {
  const options = readOptions<TaidOptions, typeof taidOptions>("taid", taidOptions, given);
  const { nllWeight, ...rest } = options;
  return {
    name: "taid",
    canPack: true,
    frozen: {
      ...teacherWeights(teacher),
      [stateName]: new Tensor("float32", [3], Float32Array.of(rest.tStart, -1, 0)),
    },
    hook: schedule(rest),
    batch: (examples: readonly Example[], shape) => makeBatch(examples, shape),
    loss: ({ model, context, values }, batch) => {
      checkTeacher("taid", teacher, model);
      const how = packedOptions(batch);
      const student = model.forward(context, batch["ids"]!, how).logits;
      const taught = teacherLogits(teacher, values, batch["ids"]!, how);
      const t = slice(values[stateName]!, 0, 0, 1);
      const { targets, weights } = batch as Record<"targets" | "weights", Value>;
      const rows = taidRows(student, taught, t);
      const nll = crossEntropyRows(student, targets);
      const total = (of: Value): Value => sum(mul(of, weights));
      return {
        sum: total(nllWeight === 0 ? rows : add(rows, mul(nll, nllWeight))),
        metrics: {
          divergence: total(divergenceRows(student, taught)),
          nll: total(nll),
        },
      };
    },
  };
}

export const taidMethod: Method<TaidOptions> = defineMethod<TaidOptions>({
  id: "taid",
  number: 3,
  title: "TAID",
  capability: "distill",
  summary:
    "Distils toward a target that starts near the student and moves to the teacher as fast as the loss falls.",
  paper: {
    title:
      "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    year: 2025,
    url: "https://arxiv.org/abs/2501.16937",
  },
  implementation: "parity",
  claim: "doesNotHold",
  buildsOn: ["distill"],
  options: taidOptions,
  roles: {
    objective: {
      data: "any",
      models: ["teacher"],
      make: ({ others }, options) => taid(others["teacher"]!, options),
    },
  },
});
