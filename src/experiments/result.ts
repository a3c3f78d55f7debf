/** The result of an experiment, as it is printed, written and committed. */
import type { Claim } from "./claim.ts";
import type {
  AnyExperiment,
  BaseRecord,
  Budget,
  CellResult,
  Cost,
  DataRecord,
  Metrics,
  Plan,
  Settings,
} from "./experiment.ts";
import { mean, standardDeviation } from "./statistics.ts";
import type { Chosen } from "./tuning.ts";
import { judge, type RuleOutcome, type Verdict } from "./verdict.ts";

/** Where a result comes from. */
export interface Provenance {
  /** Processor, cores, memory, Node, threads of the engine. */
  readonly machine: Readonly<Record<string, string | number>>;
  /** Of this package. */
  readonly packageVersion: string;
  /** Of the working copy's last commit, where there is one. */
  readonly commit?: string;
}

export interface Summary {
  readonly mean: number;
  /** Of the seeds' means over tasks; null with one seed. */
  readonly sd: number | null;
  /** Seeds. */
  readonly n: number;
}

export interface ArmResult {
  readonly name: string;
  readonly about: string;
  readonly cost: Cost;
  readonly metrics: Readonly<Record<string, Summary>>;
  /** Of every task apart, where there are several. */
  readonly tasks?: Readonly<Record<string, Readonly<Record<string, Summary>>>>;
}

export interface ExperimentResult {
  readonly id: string;
  readonly title: string;
  readonly claim: string;
  readonly claimSha256: string;
  readonly verdict: Verdict;
  /** The verdict in a sentence, with numbers. */
  readonly why: string;
  readonly budget: Budget;
  /** Of the experiment's code. */
  readonly version: string;
  readonly arms: readonly ArmResult[];
  readonly seeds: readonly number[];
  readonly tuningSeeds: readonly number[];
  /** Of all cells, those that lay in the cache included. */
  readonly seconds: number;
  readonly metric: string;
  readonly direction: Claim["direction"];
  /** Names and units of all metrics. */
  readonly metrics: Readonly<Record<string, string>>;
  readonly tuned: readonly Chosen[];
  readonly comparisons: readonly (RuleOutcome & { readonly role: "predicted" | "falsifier" })[];
  readonly headroom: readonly RuleOutcome[];
  readonly data: readonly DataRecord[];
  readonly bases: readonly BaseRecord[];
  readonly machine: Provenance["machine"];
  readonly packageVersion: string;
  readonly commit: string | null;
  readonly cells: readonly {
    readonly arm: string;
    readonly seed: number;
    readonly task: string;
    readonly settings: Settings;
    readonly metrics: Metrics;
    readonly seconds: number;
  }[];
}

export interface ResultParts {
  readonly experiment: AnyExperiment;
  readonly claim: Claim;
  readonly claimSha256: string;
  readonly budget: Budget;
  readonly plan: Plan;
  readonly tasks: readonly string[];
  readonly seeds: readonly number[];
  readonly tuningSeeds: readonly number[];
  readonly chosen: readonly Chosen[];
  /** Of the verdict phase. */
  readonly cells: readonly CellResult[];
  readonly tuningSeconds: number;
  readonly data: readonly DataRecord[];
  readonly bases: readonly BaseRecord[];
  readonly provenance: Provenance;
}

/** Mean and spread over seeds of each metric; a seed's value is its mean over tasks. */
function summarize(cells: readonly CellResult[]): Record<string, Summary> {
  const names = [...new Set(cells.flatMap(({ metrics }) => Object.keys(metrics)))];
  return Object.fromEntries(
    names.map((name) => {
      const bySeed = new Map<number, number[]>();
      for (const { seed, metrics } of cells) {
        const value = metrics[name];
        if (value === undefined) continue;
        const list = bySeed.get(seed);
        if (list) list.push(value);
        else bySeed.set(seed, [value]);
      }
      const values = [...bySeed.values()].map(mean);
      const sd = values.length > 1 ? standardDeviation(values) : null;
      return [name, { mean: mean(values), sd, n: values.length }];
    }),
  );
}

/** Puts a run's numbers together and judges them. */
export function resultOf(parts: ResultParts): ExperimentResult {
  const { experiment, claim, plan, tasks, cells, provenance } = parts;
  const { verdict, why, predicted, falsifier, headroom } = judge(claim, cells);
  return {
    id: experiment.id,
    title: experiment.title,
    claim: claim.claim,
    claimSha256: parts.claimSha256,
    verdict,
    why,
    budget: parts.budget,
    version: experiment.version,
    arms: plan.arms.map(({ name, about, cost }) => {
      const own = cells.filter(({ arm }) => arm === name);
      const each = tasks.map((task) => [task, summarize(own.filter((cell) => cell.task === task))]);
      return {
        name,
        about,
        cost,
        metrics: summarize(own),
        ...(tasks.length > 1 && { tasks: Object.fromEntries(each) }),
      };
    }),
    seeds: parts.seeds,
    tuningSeeds: parts.tuningSeeds,
    seconds: cells.reduce((sum, { seconds }) => sum + seconds, parts.tuningSeconds),
    metric: claim.metric,
    direction: claim.direction,
    metrics: experiment.metrics,
    tuned: parts.chosen,
    comparisons: [
      ...predicted.map((outcome) => ({ role: "predicted" as const, ...outcome })),
      ...falsifier.map((outcome) => ({ role: "falsifier" as const, ...outcome })),
    ],
    headroom,
    data: parts.data,
    bases: parts.bases,
    machine: provenance.machine,
    packageVersion: provenance.packageVersion,
    commit: provenance.commit ?? null,
    cells: cells.map(({ arm, seed, task, settings, metrics, seconds }) => ({
      arm,
      seed,
      task,
      settings,
      metrics,
      seconds,
    })),
  };
}
