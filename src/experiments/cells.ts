/** Cells on disk: each is written when it is done, under a name that says all it depends on. */
import { FormatError, OptionError, StateError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { Sha256 } from "../io/hub/sha256.ts";
import { isJsonObject, type JsonValue, parseJson } from "../io/json.ts";
import type { Budget, Cell, Outcome, Settings } from "./experiment.ts";

/** What every cell of a run depends on. */
export interface RunKey {
  readonly id: string;
  readonly claimSha256: string;
  readonly version: string;
  readonly budget: Budget;
  /** Of the data sets and bases that were opened: their names and checksums. */
  readonly inputs: string;
}

/** A cell as it lies on disk. */
export interface StoredCell extends Outcome {
  readonly seconds: number;
  /** Why it gave nothing: a candidate of tuning whose training failed. */
  readonly failed?: string;
}

export function sha256Hex(bytes: Uint8Array | string): string {
  const hash = new Sha256();
  hash.update(typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes);
  return hash.hex();
}

/** Settings with their names in order, so that equal ones have equal text. */
export function sorted(settings: Settings): Settings {
  const entries = Object.entries(settings).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries);
}

const cellLimit = 2 ** 24;
const maxSeries = 4096;

/** All that a cell depends on, as text. */
function keyOf(run: RunKey, { phase, arm, seed, task, settings }: Cell): string {
  const { id, claimSha256, version, budget, inputs } = run;
  return JSON.stringify([
    id,
    claimSha256,
    version,
    budget,
    inputs,
    phase,
    arm,
    seed,
    task,
    sorted(settings),
  ]);
}

function numbersOf(value: JsonValue | undefined, where: string): Record<string, number> {
  if (!isJsonObject(value)) throw new FormatError(`${where}: must be an object of numbers.`);
  return Object.fromEntries(
    Object.entries(value).map(([name, number]) => {
      if (typeof number === "number") return [name, number];
      throw new FormatError(`${where}: "${name}" must be a number.`);
    }),
  );
}

/** Finished cells of one run in a folder. */
export class CellStore {
  readonly #files: Files;
  readonly #folder: string;
  readonly #run: RunKey;

  constructor(files: Files, folder: string, run: RunKey) {
    this.#files = files;
    this.#folder = folder;
    this.#run = run;
  }

  #path(key: string): string {
    return this.#files.join(this.#folder, `${sha256Hex(key)}.json`);
  }

  /** The cell if it is done; a file that is no cell of this key counts as none. */
  async read(cell: Cell): Promise<StoredCell | undefined> {
    const key = keyOf(this.#run, cell);
    const path = this.#path(key);
    if (!(await this.#files.info(path))) return undefined;
    const json = parseJson(await this.#files.readBytes(path, cellLimit), path);
    if (!isJsonObject(json) || json["key"] !== key || typeof json["seconds"] !== "number") {
      throw new FormatError(`${path}: is no cell of this run — remove it, or run with --fresh.`);
    }
    const { metrics, series, failed, seconds } = json;
    const curves = isJsonObject(series)
      ? Object.fromEntries(
          Object.entries(series).map(([name, list]) => [name, (list as readonly number[]).slice()]),
        )
      : undefined;
    return {
      seconds,
      metrics: numbersOf(metrics, path),
      ...(curves && { series: curves }),
      ...(typeof failed === "string" && { failed }),
    };
  }

  async write(cell: Cell, stored: StoredCell): Promise<void> {
    const key = keyOf(this.#run, cell);
    await this.#files.writeText(
      this.#path(key),
      `${JSON.stringify({ key, ...cell, ...stored })}\n`,
    );
  }
}

/** What `run` of an experiment gave, checked. */
export function outcomeOf(
  given: unknown,
  cell: Cell,
  metrics: Readonly<Record<string, string>>,
): Outcome {
  const where = `cell ${cell.arm}, seed ${cell.seed}, task ${cell.task}`;
  const hasParts = typeof given === "object" && given !== null && "metrics" in given;
  const outcome = (
    hasParts && typeof given.metrics === "object" ? given : { metrics: given }
  ) as Outcome;
  for (const [name, value] of Object.entries(outcome.metrics)) {
    if (!Object.hasOwn(metrics, name)) {
      throw new OptionError(
        `${where}: gave the metric "${name}", which the experiment does not declare — its metrics are ${Object.keys(metrics).join(", ")}.`,
      );
    }
    if (Number.isFinite(value)) continue;
    throw new StateError(`${where}: ${name} is ${value} — the training went wrong.`);
  }
  for (const [name, list] of Object.entries(outcome.series ?? {})) {
    if (list.length <= maxSeries && list.every(Number.isFinite)) continue;
    throw new StateError(
      `${where}: the series "${name}" must hold at most ${maxSeries} finite numbers, got ${list.length}.`,
    );
  }
  return outcome;
}
