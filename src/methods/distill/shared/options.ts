/** Options of the objectives that hold a student to a teacher by a divergence. */
import type { OptionSpecs } from "../../../options.ts";
import {
  type DistillOptions,
  type Divergence,
  divergences,
} from "../../../train/objectives/distill.ts";

export interface TaughtOptions {
  readonly divergence?: Divergence;
  /** Of "jsd": the teacher's share of the mixture. */
  readonly beta?: number;
  /** Of the skew divergences: share of the own distribution in the mixture. */
  readonly skew?: number;
  readonly temperature?: number;
  readonly sftWeight?: number;
}

export function divergenceSpecs(
  divergence: Divergence,
  temperature: string,
): OptionSpecs<TaughtOptions> {
  return {
    divergence: {
      type: "text",
      default: divergence,
      choices: divergences,
      about: "how far the student's distribution is from the teacher's",
    },
    beta: {
      type: "number",
      default: 0.5,
      range: [1e-6, 1 - 1e-6],
      about: "jsd: the teacher's share of the mixture",
    },
    skew: {
      type: "number",
      default: 0.1,
      range: [0, 0.999],
      about: "skew-forward, skew-reverse: share of the own distribution",
    },
    temperature: { type: "number", default: 1, range: [1e-3, 100], about: temperature },
    sftWeight: {
      type: "number",
      default: 0,
      range: [0, 100],
      about: "adds so many times the cross-entropy of the data",
    },
  };
}

/** The options under the names of `distill`, the temperature left out. */
export function divergenceOf(options: TaughtOptions): Omit<DistillOptions, "teacher"> {
  const { divergence, beta, skew, sftWeight } = options;
  return {
    ...(divergence !== undefined && { divergence }),
    ...(beta !== undefined && { beta }),
    ...(skew !== undefined && { alpha: skew }),
    ...(sftWeight !== undefined && { nllWeight: sftWeight }),
  };
}
