/** What a budget runs: an experiment's plan, checked against its claim. */
import { FormatError, OptionError } from "../errors.ts";
import { type Claim, checkNames } from "./claim.ts";
import { type AnyExperiment, type Budget, onlyTask, type Plan } from "./experiment.ts";
import { checkTuning, tuned } from "./tuning.ts";

const maxCells = 20_000;

/** What is run: the plan checked against the claim. */
export interface Work {
  readonly plan: Plan;
  readonly tasks: readonly string[];
  readonly seeds: readonly number[];
  readonly tuningSeeds: readonly number[];
  readonly verdictCells: number;
  readonly allCells: number;
}

function someOf(
  seeds: readonly number[],
  count: number | undefined,
  what: string,
  budget: Budget,
): readonly number[] {
  if (count === undefined || count === seeds.length) return seeds;
  if (budget === "quick" && Number.isInteger(count) && count >= 1 && count < seeds.length) {
    return seeds.slice(0, count);
  }
  throw new OptionError(
    `reproduce: a ${budget} plan runs ${count} of ${seeds.length} ${what} — a full run uses all of them.`,
  );
}

/**
 * What a budget runs, checked against the claim.
 * @throws FormatError for a claim of another experiment or with names that are not there, OptionError for a
 * plan that leaves out seeds or doubles names.
 */
export function checkPlan(
  experiment: AnyExperiment,
  claim: Claim,
  budget: Budget,
  path: string,
): Work {
  if (claim.id !== experiment.id) {
    throw new FormatError(`${path}: is the claim of "${claim.id}", not of "${experiment.id}".`);
  }
  const plan = experiment.plan(budget);
  const tasks = plan.tasks ?? [onlyTask];
  const arms = plan.arms.map(({ name }) => name);
  for (const [what, names] of Object.entries({ arms, tasks })) {
    if (names.length > 0 && new Set(names).size === names.length) continue;
    throw new OptionError(`${experiment.id}: ${what} must have names of their own: ${names}.`);
  }
  const metrics = Object.keys(experiment.metrics);
  checkNames(claim, { arms, tasks, metrics }, path);
  checkTuning(plan, tasks, metrics);
  const seeds = someOf(claim.seeds, plan.seeds, "seeds", budget);
  const tuningSeeds = someOf(claim.tuningSeeds, plan.tuningSeeds, "tuning seeds", budget);
  if (plan.tuning && tuningSeeds.length === 0) {
    throw new OptionError(`${experiment.id}: tunes settings, and the claim has no tuning seeds.`);
  }
  const verdictCells = arms.length * tasks.length * seeds.length;
  const tuning = tuned(plan, tasks).reduce(
    (sum, { arm, tasks: on }) =>
      sum + plan.tuning!.grid[arm.name]!.length * on.length * tuningSeeds.length,
    0,
  );
  if (verdictCells + tuning > maxCells) {
    throw new OptionError(
      `${experiment.id}: has ${verdictCells + tuning} cells, at most ${maxCells} are run.`,
    );
  }
  return { plan, tasks, seeds, tuningSeeds, verdictCells, allCells: verdictCells + tuning };
}
