/**
 * A run is a folder, of one process at a time:
 *
 *   run.json          what was asked for: settings, model, data; written first
 *   environment.json  what it ran on, each time it was started
 *   metrics.jsonl     a line for each step and evaluation
 *   events.out.…      the same for TensorBoard
 *   loss.svg          the same as a chart
 *   before.json       how the model did before
 *   samples.json      answers before and after
 *   checkpoints/      the last few, and the best
 *   adapter_….*       the adapter in PEFT's form, or the model in transformers', with a README card
 *   result.json       written last: a run with one is finished
 *
 * Every file is written whole or not at all, but for the logs, which a run that goes on cuts to the
 * step of its checkpoint.
 */
import { FormatError, MissingError, StateError } from "../errors.ts";
import type { FileLock, Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { loadState, type SavedState, saveState } from "./checkpoint.ts";
import type { FinetuneState } from "./finetune.ts";

type Json = Readonly<Record<string, unknown>>;

/** One line of the log. */
export interface Metrics {
  readonly step: number;
  readonly [name: string]: number;
}

const version = 1;
const names = {
  record: "run.json",
  environment: "environment.json",
  metrics: "metrics.jsonl",
  result: "result.json",
  lock: "run.lock",
  checkpoints: "checkpoints",
  /** Encoded examples that memory does not hold; made anew at each start. */
  data: "data",
} as const;

const jsonLimit = 2 ** 24;
const metricsLimit = 2 ** 28;
const checkpointName = /^step-(\d{8,12})\.safetensors$/;

async function readObject(files: Files, path: string): Promise<JsonObject> {
  const value = parseJson(await files.readBytes(path, jsonLimit), path);
  if (!isJsonObject(value)) throw new FormatError(`${path}: must be an object.`, { path });
  return value;
}

/** A checkpoint by its step. */
export interface CheckpointFile {
  readonly step: number;
  readonly path: string;
}

/** Checkpoints of a run's folder, the newest first. */
export async function listCheckpoints(files: Files, folder: string): Promise<CheckpointFile[]> {
  const inside = files.join(folder, names.checkpoints);
  if (!(await files.info(inside))) return [];
  return (await files.list(inside))
    .flatMap(({ path }) => {
      const match = checkpointName.exec(path.split(/[\\/]/).at(-1)!);
      return match ? [{ step: Number(match[1]), path }] : [];
    })
    .sort((a, b) => b.step - a.step);
}

/** What a finished, stopped or running run left in its folder. */
export interface RunSummary {
  readonly folder: string;
  /** The contents of run.json. */
  readonly record: JsonObject;
  /** The contents of result.json, of a finished run. */
  readonly result: JsonObject | undefined;
  readonly metrics: readonly Metrics[];
}

/** Whether a folder holds a run. */
export async function isRun(files: Files, folder: string): Promise<boolean> {
  return (await files.info(files.join(folder, names.record))) !== undefined;
}

/**
 * Reads a run, which may be going on.
 * @throws MissingError when the folder holds none, FormatError when its files are damaged.
 */
export async function readRun(files: Files, folder: string): Promise<RunSummary> {
  const path = files.join(folder, names.record);
  if (!(await files.info(path))) {
    throw new MissingError(`${folder}: holds no run, it has no ${names.record}.`, { folder });
  }
  const result = files.join(folder, names.result);
  return {
    folder,
    record: await readObject(files, path),
    result: (await files.info(result)) ? await readObject(files, result) : undefined,
    metrics: await readMetrics(files, files.join(folder, names.metrics)),
  };
}

/** Lines of the log, in order; the last one may be cut short, and is then left out. */
async function readMetrics(files: Files, path: string): Promise<Metrics[]> {
  if (!(await files.info(path))) return [];
  const lines = (await files.readText(path, metricsLimit)).split("\n");
  const whole = lines.slice(0, -1);
  return whole.map((line, i) => {
    const where = `${path}:${i + 1}`;
    const value = parseJson(new TextEncoder().encode(line), where);
    if (!isJsonObject(value) || !Number.isSafeInteger(value["step"])) {
      throw new FormatError(`${where}: must be an object with a step.`, { path });
    }
    return value as unknown as Metrics;
  });
}

export class Run {
  readonly folder: string;
  /** What the run was made with. */
  readonly record: JsonObject;
  readonly #files: Files;
  readonly #lock: FileLock;
  #metrics: Metrics[] = [];

  private constructor(files: Files, folder: string, record: JsonObject, lock: FileLock) {
    this.#files = files;
    this.folder = folder;
    this.record = record;
    this.#lock = lock;
  }

  /**
   * Begins a run in a folder that is new, empty, or has what an earlier start left before it wrote
   * anything.
   * @throws StateError when the folder holds a run or other files, or another process has it.
   */
  static async create(files: Files, folder: string, record: Json): Promise<Run> {
    await files.makeDirectory(folder);
    const lock = await takeLock(files, folder);
    try {
      if (await isRun(files, folder)) {
        throw new StateError(
          `${folder}: holds a run already — go on with it by --resume ${folder}, or choose another folder.`,
          { folder },
        );
      }
      await clearTemporary(files, folder);
      const others = (await files.list(folder))
        .map(({ path }) => path.split(/[\\/]/).at(-1)!)
        .filter((name) => !name.startsWith(names.lock) && name !== names.data);
      if (others.length > 0) {
        throw new StateError(
          `${folder}: is not empty, it has ${others.slice(0, 3).join(", ")} — choose a new folder.`,
          { folder },
        );
      }
      const whole = { version, ...record };
      await files.writeText(
        files.join(folder, names.record),
        `${JSON.stringify(whole, null, 2)}\n`,
      );
      return new Run(files, folder, whole as unknown as JsonObject, lock);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /**
   * Takes up a run that was begun, by this or another process that is gone.
   * @throws MissingError when the folder holds none; StateError when another process has it, or it was
   * written by another version.
   */
  static async open(files: Files, folder: string): Promise<Run> {
    if (!(await isRun(files, folder))) {
      throw new MissingError(`${folder}: holds no run, it has no ${names.record}.`, { folder });
    }
    const lock = await takeLock(files, folder);
    try {
      const { record } = await readRun(files, folder);
      if (record["version"] !== version) {
        throw new StateError(
          `${folder}: its run.json is of version ${JSON.stringify(record["version"] ?? null)}, this package goes on with version ${version} — resume with the package that began it.`,
        );
      }
      await clearTemporary(files, folder);
      const run = new Run(files, folder, record, lock);
      run.#metrics = await readMetrics(files, run.path(names.metrics));
      return run;
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /** A path in the folder. */
  path(...parts: readonly string[]): string {
    return this.#files.join(this.folder, ...parts);
  }

  /** Lines of the log so far. */
  get metrics(): readonly Metrics[] {
    return this.#metrics;
  }

  /** Whether the run ended, and its result is written. */
  async result(): Promise<JsonObject | undefined> {
    const path = this.path(names.result);
    return (await this.#files.info(path)) ? readObject(this.#files, path) : undefined;
  }

  /** Notes what the run is on now; earlier ones stay. */
  async noteEnvironment(environment: Json): Promise<void> {
    const path = this.path(names.environment);
    const known = (await this.#files.info(path))
      ? parseJson(await this.#files.readBytes(path, jsonLimit), path)
      : [];
    const all: readonly (JsonValue | Json)[] = [
      ...(Array.isArray(known) ? known : []),
      environment,
    ];
    await this.#files.writeText(path, `${JSON.stringify(all.slice(-1000), null, 2)}\n`);
  }

  /** What an earlier start noted last of what it ran on. */
  async lastEnvironment(): Promise<JsonObject | undefined> {
    const path = this.path(names.environment);
    if (!(await this.#files.info(path))) return undefined;
    const known = parseJson(await this.#files.readBytes(path, jsonLimit), path);
    const last = Array.isArray(known) ? (known.at(-1) as JsonValue | undefined) : undefined;
    return last !== undefined && isJsonObject(last) ? last : undefined;
  }

  /** Keeps a small thing by name: `<name>.json`. */
  async note(name: string, value: unknown): Promise<void> {
    await this.#files.writeText(this.path(`${name}.json`), `${JSON.stringify(value, null, 2)}\n`);
  }

  /** What `note` kept. */
  async noted(name: string): Promise<JsonValue | undefined> {
    const path = this.path(`${name}.json`);
    if (!(await this.#files.info(path))) return undefined;
    return parseJson(await this.#files.readBytes(path, jsonLimit), path);
  }

  async log(line: Metrics): Promise<void> {
    this.#metrics.push(line);
    await this.#files.append(this.path(names.metrics), `${JSON.stringify(line)}\n`);
  }

  /** Forgets lines beyond a step. */
  async cutTo(step: number): Promise<void> {
    this.#metrics = this.#metrics.filter((line) => line.step <= step);
    const text = this.#metrics.map((line) => `${JSON.stringify(line)}\n`).join("");
    await this.#files.writeText(this.path(names.metrics), text);
  }

  /**
   * Writes a checkpoint, then removes all but the last `keep`.
   * @param keep from 1
   */
  async save(
    { params, optimizer, buffers, tokens }: FinetuneState,
    notes: Json,
    keep: number,
  ): Promise<void> {
    const inside = this.path(names.checkpoints);
    await this.#files.makeDirectory(inside);
    const name = `step-${String(optimizer.step).padStart(8, "0")}.safetensors`;
    const path = this.#files.join(inside, name);
    const state = { params, optimizer, ...(buffers && { buffers }) };
    await saveState(this.#files, path, state, { ...notes, tokens });
    const old = (await listCheckpoints(this.#files, this.folder)).slice(keep);
    for (const checkpoint of old) await this.#files.remove(checkpoint.path);
  }

  /** Keeps the parameters of the best evaluation beside the last checkpoints. */
  async saveBest({ params, optimizer, buffers }: FinetuneState, notes: Json): Promise<void> {
    await this.#files.makeDirectory(this.path(names.checkpoints));
    const state = {
      params,
      optimizer: { step: optimizer.step, tensors: {} },
      ...(buffers && { buffers }),
    };
    await saveState(this.#files, this.path(names.checkpoints, "best.safetensors"), state, notes);
  }

  /** The best evaluation's parameters. */
  best(): Promise<SavedState> {
    return loadState(this.#files, this.path(names.checkpoints, "best.safetensors"));
  }

  /**
   * The newest checkpoint that can be read; `undefined` when there is none yet.
   * @param onDamaged is told of newer ones that cannot
   */
  async load(
    onDamaged: (message: string) => void = () => {},
  ): Promise<(FinetuneState & { readonly notes: Json }) | undefined> {
    for (const { path } of await listCheckpoints(this.#files, this.folder)) {
      try {
        const { params, optimizer, buffers, notes } = await loadState(this.#files, path);
        return {
          params,
          optimizer,
          ...(buffers && { buffers }),
          tokens: Number(notes["tokens"]),
          notes,
        };
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
        onDamaged(error.message);
      }
    }
    return undefined;
  }

  /** Marks the run as finished. */
  async finish(result: Json): Promise<void> {
    await this.#files.writeText(this.path(names.result), `${JSON.stringify(result, null, 2)}\n`);
  }

  /** Lets another process have the folder. */
  async release(): Promise<void> {
    await this.#lock.release();
  }
}

/** Removes what a killed process was writing; while the lock is held nobody else writes here. */
async function clearTemporary(files: Files, folder: string): Promise<void> {
  for (const inside of [folder, files.join(folder, names.checkpoints)]) {
    if (!(await files.info(inside))) continue;
    for (const { path } of await files.list(inside)) {
      if (/\.tmp-[^\\/]+$/.test(path)) await files.remove(path);
    }
  }
}

async function takeLock(files: Files, folder: string): Promise<FileLock> {
  try {
    return await files.lock(files.join(folder, names.lock));
  } catch (error) {
    // The system's refusals, as of a read-only disk, have their own sentence.
    const isHeld = error instanceof StateError && error.details["errno"] === undefined;
    if (!isHeld) throw error;
    throw new StateError(
      `${folder}: another process trains in this folder (${error.details["pid"] ?? "unknown"}) — wait until it ends, or stop it first.`,
      { folder, ...error.details },
      { cause: error },
    );
  }
}
