/** Choosing settings on tuning seeds, by the declared rule: the best mean, the earlier one among equals. */
import { OptionError, StateError } from "../errors.ts";
import { sorted } from "./cells.ts";
import type { Arm, Cell, Plan, Settings, Tuning } from "./experiment.ts";
import { mean } from "./statistics.ts";

/** One candidate of an arm, its cells, and what they gave. */
export interface Candidate {
  readonly settings: Settings;
  /** Mean of the tuning metric; null when the candidate is out. */
  readonly score: number | null;
  /** Why it is out. */
  readonly failed?: string;
}

export interface Chosen {
  readonly arm: string;
  /** The task that it was chosen for, when tasks are tuned apart. */
  readonly task?: string;
  readonly settings: Settings;
  readonly candidates: readonly Candidate[];
}

/** What one tuning cell gave: the metric, or why there is none. */
export interface TuningScore {
  readonly value?: number;
  readonly failed?: string;
}

const maxCandidates = 64;

/** @throws OptionError for a tuning that names arms or tasks that are not there. */
export function checkTuning(
  plan: Plan,
  tasks: readonly string[],
  metrics: readonly string[],
): void {
  const { tuning } = plan;
  if (!tuning) return;
  const arms = plan.arms.map(({ name }) => name);
  for (const [arm, grid] of Object.entries(tuning.grid)) {
    if (!arms.includes(arm)) throw new OptionError(`tuning: "${arm}" is no arm of the plan.`);
    if (grid.length >= 1 && grid.length <= maxCandidates) continue;
    throw new OptionError(
      `tuning: ${arm} must have 1 to ${maxCandidates} candidates, got ${grid.length}.`,
    );
  }
  for (const task of tuning.tasks ?? []) {
    if (!tasks.includes(task)) throw new OptionError(`tuning: "${task}" is no task of the plan.`);
  }
  if (tuning.perTask && tuning.tasks) {
    throw new OptionError("tuning: perTask chooses for every task — leave out the list of tasks.");
  }
  if (!metrics.includes(tuning.metric)) {
    throw new OptionError(`tuning: "${tuning.metric}" is no metric of the experiment.`);
  }
}

/** What is tuned: each arm with a grid, once or for every task apart. */
export function tuned(
  plan: Plan,
  tasks: readonly string[],
): readonly { readonly arm: Arm; readonly task?: string; readonly tasks: readonly string[] }[] {
  const { tuning } = plan;
  if (!tuning) return [];
  const on = tuning.tasks ?? tasks;
  return plan.arms
    .filter(({ name }) => Object.hasOwn(tuning.grid, name))
    .flatMap((arm) =>
      tuning.perTask ? on.map((task) => ({ arm, task, tasks: [task] })) : [{ arm, tasks: on }],
    );
}

/** The cells of one candidate. */
export function tuningCells(
  arm: Arm,
  candidate: Settings,
  tasks: readonly string[],
  seeds: readonly number[],
): readonly Cell[] {
  const settings = sorted({ ...arm.settings, ...candidate });
  return seeds.flatMap((seed) =>
    tasks.map((task): Cell => ({ phase: "tuning", arm: arm.name, seed, task, settings })),
  );
}

/** A candidate's mean; one failed cell takes it out. */
export function scoreCandidate(settings: Settings, scores: readonly TuningScore[]): Candidate {
  const failed = scores.find(({ value }) => value === undefined);
  if (failed) {
    return { settings, score: null, failed: failed.failed ?? "the metric is not there" };
  }
  return { settings, score: mean(scores.map(({ value }) => value!)) };
}

/**
 * The best candidate.
 * @throws StateError when all are out.
 */
export function choose(
  { direction, metric }: Tuning,
  arm: string,
  candidates: readonly Candidate[],
): Settings {
  let best: Candidate | undefined;
  for (const candidate of candidates) {
    const { score } = candidate;
    if (score === null) continue;
    const isBetter = !best || (direction === "higher" ? score > best.score! : score < best.score!);
    if (isBetter) best = candidate;
  }
  if (best) return best.settings;
  throw new StateError(
    `tuning: no candidate of ${arm} gave ${metric}, the first because ${candidates[0]?.failed} — change its settings.`,
  );
}
