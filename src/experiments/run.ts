/** One run of an experiment: opens data and bases, tunes, judges, and keeps every finished cell. */
import type { Backend } from "../backend/backend.ts";
import { StateError } from "../errors.ts";
import type { Host } from "../host/host.ts";
import type { Packages } from "../host/packages.ts";
import { Rng } from "../tensor/rng.ts";
import { CellStore, outcomeOf, type RunKey, type StoredCell, sorted } from "./cells.ts";
import { type Claim, readClaim } from "./claim.ts";
import { Scene } from "./context.ts";
import type { AnyExperiment, Budget, Cell, CellResult, Plan, Settings } from "./experiment.ts";
import type { Work } from "./plan.ts";
import { type ExperimentResult, type Provenance, resultOf } from "./result.ts";
import { type Chosen, choose, scoreCandidate, tuned, tuningCells } from "./tuning.ts";

export interface Progress {
  /** Cells done, of all. */
  readonly done: number;
  readonly total: number;
  /** What is being done: data and bases, then cells. */
  readonly cell?: Cell;
  /** Of what is left, by cells that are done. */
  readonly secondsLeft?: number;
  /** What the cell itself says. */
  readonly note?: string;
}

export interface ReproduceOptions {
  readonly experiment: AnyExperiment;
  /** Path of its claim.json. */
  readonly claimFile: string;
  readonly budget: Budget;
  readonly host: Host;
  readonly packages: Packages;
  /** Opened before the first cell, and not when the claim or the plan is wrong. */
  readonly openBackend: () => Promise<Backend>;
  readonly provenance: Provenance;
  /** Forget this budget's cells first. */
  readonly isFresh?: boolean;
  readonly signal?: AbortSignal;
  readonly onPlan?: (plan: Plan, claim: Claim, cells: number) => void;
  readonly onProgress?: (progress: Progress) => void;
  /** A cell is done: `isCached` when it was so before. */
  readonly onCell?: (cell: CellResult, isCached: boolean) => void;
  readonly onTuned?: (chosen: Chosen) => void;
}

/** One run, from opening data to the result. */
export class Run {
  readonly #options: ReproduceOptions;
  readonly #claim: Claim;
  readonly #claimSha256: string;
  readonly #work: Work;
  readonly #folder: string;
  readonly #scene: Scene;
  #store!: CellStore;
  #shared: unknown;
  #done = 0;
  #now: Cell | undefined;
  /** Seconds of finished cells, by phase and arm. */
  readonly #times = new Map<string, number[]>();

  constructor(
    options: ReproduceOptions,
    claim: Claim,
    claimSha256: string,
    work: Work,
    folder: string,
  ) {
    this.#options = options;
    this.#claim = claim;
    this.#claimSha256 = claimSha256;
    this.#work = work;
    this.#folder = folder;
    this.#scene = new Scene(options, folder, (note) => this.#tell(note));
  }

  async result(): Promise<ExperimentResult | undefined> {
    const { experiment, signal, budget, host } = this.#options;
    try {
      this.#tell("opening data and bases");
      const context = await this.#scene.open(this.#options.openBackend);
      this.#shared = await experiment.open(context);
      const inputs = this.#scene.close();
      const { id, version } = experiment;
      const key: RunKey = { id, claimSha256: this.#claimSha256, version, budget, inputs };
      const { files } = host;
      this.#store = new CellStore(files, files.join(this.#folder, "cells", budget), key);
      const chosen = await this.#tune();
      const results = await this.#judgeAll(chosen);
      if (!chosen || !results || signal?.aborted) return undefined;
      await this.#checkClaim();
      const derived = experiment.derive?.(results) ?? results;
      return resultOf({
        experiment,
        claim: this.#claim,
        claimSha256: this.#claimSha256,
        budget,
        plan: this.#work.plan,
        tasks: this.#work.tasks,
        seeds: this.#work.seeds,
        tuningSeeds: this.#work.tuningSeeds,
        chosen,
        cells: derived,
        tuningSeconds: this.#seconds("tuning"),
        data: this.#scene.data,
        bases: this.#scene.bases,
        provenance: this.#options.provenance,
      });
    } catch (error) {
      // What a step throws when it was asked to stop is no failure.
      if (signal?.aborted) return undefined;
      throw error;
    } finally {
      if (this.#shared !== undefined) await experiment.close?.(this.#shared);
    }
  }

  /** Settings of each arm that is tuned; `undefined` when the signal ended it. */
  async #tune(): Promise<readonly Chosen[] | undefined> {
    const { plan, tasks, tuningSeeds } = this.#work;
    const chosen: Chosen[] = [];
    for (const { arm, task, tasks: on } of tuned(plan, tasks)) {
      const { grid, metric } = plan.tuning!;
      const candidates = [];
      for (const settings of grid[arm.name]!) {
        const scores = [];
        for (const cell of tuningCells(arm, settings, on, tuningSeeds)) {
          const stored = await this.#cell(cell);
          if (!stored) return undefined;
          const { failed, metrics } = stored;
          const value = metrics[metric];
          scores.push(
            failed === undefined ? { ...(value !== undefined && { value }) } : { failed },
          );
        }
        candidates.push(scoreCandidate(settings, scores));
      }
      const settings = choose(plan.tuning!, arm.name, candidates);
      const one: Chosen = {
        arm: arm.name,
        ...(task !== undefined && { task }),
        settings,
        candidates,
      };
      chosen.push(one);
      this.#options.onTuned?.(one);
    }
    return chosen;
  }

  async #judgeAll(
    chosen: readonly Chosen[] | undefined,
  ): Promise<readonly CellResult[] | undefined> {
    if (!chosen) return undefined;
    const { plan, tasks, seeds } = this.#work;
    const settingsOf = (arm: string, task: string): Settings =>
      chosen.find((one) => one.arm === arm && (one.task ?? task) === task)?.settings ?? {};
    const results: CellResult[] = [];
    // Seeds outermost: when a run is stopped, every arm has the same seeds.
    for (const seed of seeds) {
      for (const task of tasks) {
        for (const { name: arm, settings: fixed } of plan.arms) {
          const settings = sorted({ ...fixed, ...settingsOf(arm, task) });
          const cell: Cell = { phase: "verdict", arm, seed, task, settings };
          const stored = await this.#cell(cell);
          if (!stored) return undefined;
          results.push({ ...cell, ...stored });
        }
      }
    }
    return results;
  }

  /** A cell's outcome: from disk, or run now and written; `undefined` when the signal ended it. */
  async #cell(cell: Cell): Promise<StoredCell | undefined> {
    const { signal, onCell } = this.#options;
    if (signal?.aborted) return undefined;
    await this.#checkClaim();
    this.#now = cell;
    const before = await this.#store.read(cell);
    const stored = before ?? (await this.#runCell(cell));
    if (!stored) return undefined;
    this.#done++;
    const list = this.#times.get(`${cell.phase} ${cell.arm}`);
    if (list) list.push(stored.seconds);
    else this.#times.set(`${cell.phase} ${cell.arm}`, [stored.seconds]);
    onCell?.({ ...cell, ...stored }, before !== undefined);
    return stored;
  }

  async #runCell(cell: Cell): Promise<StoredCell | undefined> {
    const { experiment, host, signal } = this.#options;
    this.#tell();
    const start = host.clock.monotonic();
    const seconds = (): number => Math.round(host.clock.monotonic() - start) / 1000;
    const { id } = experiment;
    const rng = new Rng(cell.seed).fold(id, cell.phase, cell.arm, cell.task);
    let stored: StoredCell;
    try {
      const given = await experiment.run(cell, this.#shared, this.#scene.context, rng);
      stored = { ...outcomeOf(given, cell, experiment.metrics), seconds: seconds() };
    } catch (error) {
      if (signal?.aborted) return undefined;
      if (!(error instanceof StateError) || cell.phase === "verdict") throw error;
      // A candidate whose training fails is out; that is what tuning is for.
      stored = { metrics: {}, failed: error.message, seconds: seconds() };
    }
    // A cell that was cut short by the signal may look whole.
    if (signal?.aborted) return undefined;
    await this.#store.write(cell, stored);
    return stored;
  }

  async #checkClaim(): Promise<void> {
    const { host, claimFile } = this.#options;
    const { sha256 } = await readClaim(host.files, claimFile);
    if (sha256 === this.#claimSha256) return;
    throw new StateError(
      `reproduce: ${claimFile} was changed while this run went on — put it back to go on, or begin anew with --fresh.`,
    );
  }

  #seconds(phase: Cell["phase"]): number {
    let sum = 0;
    for (const [key, list] of this.#times) {
      if (key.startsWith(`${phase} `)) sum += list.reduce((a, b) => a + b, 0);
    }
    return sum;
  }

  /** Time for what is left: cells of an arm take as long as those of it that are done. */
  #left(): number | undefined {
    const all = [...this.#times.values()].flat();
    if (all.length === 0) return undefined;
    return (all.reduce((a, b) => a + b, 0) / all.length) * (this.#work.allCells - this.#done);
  }

  #tell(note?: string): void {
    const secondsLeft = this.#left();
    this.#options.onProgress?.({
      done: this.#done,
      total: this.#work.allCells,
      ...(this.#now && { cell: this.#now }),
      ...(secondsLeft !== undefined && { secondsLeft }),
      ...(note !== undefined && { note }),
    });
  }
}
