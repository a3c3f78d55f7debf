/** How answers of a policy become what it learns from: GRPO, PPO, on-policy distillation. */
import type { Example } from "../../data/example.ts";
import { OptionError } from "../../errors.ts";
import type { Rng } from "../../tensor/rng.ts";
import type { AnyObjective } from "../objective.ts";
import { type DistillOptions, distill } from "./distill.ts";
import { type AdvantageScale, type GrpoOptions, groupAdvantages, grpo } from "./grpo.ts";
import { type GaeOptions, gae, type PpoOptions, ppo, tokenRewards } from "./ppo.ts";
import type { Rollout } from "./rollout.ts";

/** An answer of a policy as tokens, and its reward. */
export interface ScoredAnswer {
  /** Prompt and answer; only the answer carries loss. */
  readonly example: Example;
  readonly reward: number;
}

/** What `inspect` of the objective read off an answer, a token each, by name. */
export type Inspected = Readonly<Record<string, Float32Array>>;

/** A role: what a policy's answers teach it. */
export interface PolicyMethod {
  readonly name: string;
  readonly objective: AnyObjective;
  /** Answers to each prompt. */
  readonly groupSize: number;
  /** Whether answers are judged by a reward. */
  readonly usesReward: boolean;
  /** Whether the objective must look at answers before the first update, with so many updates on them. */
  needsInspection(iterations: number): boolean;
  /** What is learnt from; answers to one prompt are together. */
  learn(answers: readonly ScoredAnswer[], inspected: readonly Inspected[]): readonly Rollout[];
  /**
   * Whether a rollout takes answers of the data in place of the policy's.
   * @param rng of this rollout
   */
  takesData?(rng: Rng): boolean;
}

export interface GrpoPolicyOptions extends GrpoOptions {
  /** Answers to each prompt, from 2; default 8. */
  readonly groupSize?: number;
  /** What advantages are divided by; default "group". Dr. GRPO: "none", with normalize "length". */
  readonly scale?: AdvantageScale;
}

/** @throws OptionError for settings outside their range. */
export function grpoPolicy(options: GrpoPolicyOptions = {}): PolicyMethod {
  const { groupSize = 8, scale = "group", beta = 0 } = options;
  if (!Number.isInteger(groupSize) || groupSize < 2 || groupSize > 4096) {
    throw new OptionError(`grpo: groupSize must be a whole number in [2, 4096], got ${groupSize}.`);
  }
  return {
    name: "grpo",
    objective: grpo(options),
    groupSize,
    usesReward: true,
    // With one update the policy that answered is the one that learns, and a reference runs in the step.
    needsInspection: (iterations) => iterations > 1 || beta > 0,
    learn(answers, inspected) {
      const advantages = groupAdvantages(
        answers.map(({ reward }) => reward),
        groupSize,
        scale,
      );
      return answers.map(({ example }, i) => ({
        example,
        advantage: advantages[i]!,
        ...inspected[i],
      }));
    },
  };
}

export interface PpoPolicyOptions extends PpoOptions, GaeOptions {
  /** Answers to each prompt; default 1. */
  readonly groupSize?: number;
  /** κ, the penalty for leaving the reference, from 0; default 0.05. */
  readonly klWeight?: number;
}

/** @throws OptionError for settings outside their range. */
export function ppoPolicy(options: PpoPolicyOptions): PolicyMethod {
  const { groupSize = 1, klWeight = 0.05, gamma = 1, lambda = 0.95 } = options;
  for (const [name, value] of Object.entries({ gamma, lambda })) {
    if (value >= 0 && value <= 1) continue;
    throw new OptionError(`ppo: ${name} must be in [0, 1], got ${value}.`);
  }
  if (!(klWeight >= 0 && klWeight <= 100)) {
    throw new OptionError(`ppo: klWeight must be in [0, 100], got ${klWeight}.`);
  }
  if (!Number.isInteger(groupSize) || groupSize < 1 || groupSize > 4096) {
    throw new OptionError(`ppo: groupSize must be a whole number in [1, 4096], got ${groupSize}.`);
  }
  return {
    name: "ppo",
    objective: ppo(options),
    groupSize,
    usesReward: true,
    needsInspection: () => true,
    learn(answers, inspected) {
      const rewards = answers.map(({ reward }, i) =>
        tokenRewards(reward, inspected[i]!["old"]!, inspected[i]!["reference"]!, klWeight),
      );
      const values = inspected.map((one) => one["values"]!);
      const { advantages, returns } = gae(rewards, values, { gamma, lambda });
      return answers.map(({ example }, i) => ({
        example,
        advantage: advantages[i]!,
        old: inspected[i]!["old"]!,
        values: values[i]!,
        returns: returns[i]!,
      }));
    },
  };
}

export interface GkdOptions extends DistillOptions {
  /** λ: share of rollouts that are the student's own answers, in [0, 1]; default 0.5. */
  readonly onPolicy?: number;
}

/**
 * Generalised knowledge distillation: the teacher corrects what the student says itself (arXiv:2306.13649).
 * Divergence default "jsd". @throws OptionError for settings outside their range.
 */
export function gkdPolicy(options: GkdOptions): PolicyMethod {
  const { onPolicy = 0.5 } = options;
  if (!(onPolicy >= 0 && onPolicy <= 1)) {
    throw new OptionError(`gkd: onPolicy must be in [0, 1], got ${onPolicy}.`);
  }
  const taught = distill({ divergence: "jsd", ...options });
  const objective: AnyObjective = {
    ...taught,
    name: "gkd",
    batch: (rollouts: readonly Rollout[], shape) =>
      taught.batch(
        rollouts.map(({ example }) => example),
        shape,
      ),
  };
  return {
    name: "gkd",
    objective,
    groupSize: 1,
    usesReward: false,
    needsInspection: () => false,
    learn: (answers) => answers.map(({ example }) => ({ example, advantage: 0 })),
    takesData: (rng) => rng.fold("onPolicy").uniform() >= onPolicy,
  };
}
