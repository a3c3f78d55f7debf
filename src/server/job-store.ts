/**
 * Fine-tuning jobs: a queue, of which one runs at a time, in a folder of the server's data.
 *
 *   jobs/<id>/job.json       what was asked for and how it stands
 *   jobs/<id>/events.jsonl   what happened
 *   jobs/<id>/run/           the run of `plasticity finetune`, which a server that was killed goes on with
 */

import { type Files, FormatError, isRun, MissingError, readRun, StateError } from "../index.ts";
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import type { AdapterTable } from "./adapter-table.ts";
import type { HyperparametersBody, JobBody, JobEventBody, JobStatus } from "./api-types.ts";
import { newId } from "./ids.ts";

const idPattern = /^ftjob-[A-Za-z0-9]{24}$/;
const maxRecordBytes = 2 ** 20;
const maxEventBytes = 2 ** 24;
const maxEvents = 10_000;

/** What a job is. */
export interface JobRecord {
  readonly id: string;
  /** Seconds since the epoch, as all times. */
  readonly created: number;
  readonly model: string;
  readonly suffix: string | undefined;
  readonly trainingFile: string;
  readonly validationFile: string | undefined;
  readonly hyperparameters: HyperparametersBody;
  readonly method: JsonObject;
  /** Strength of a preference; absent: examples are imitated. */
  readonly beta: number | undefined;
  readonly seed: number;
  readonly metadata: Readonly<Record<string, string>> | undefined;
  readonly status: JobStatus;
  readonly started?: number;
  readonly finished?: number;
  readonly error?: string;
  readonly trainedTokens?: number;
  /** Under which its adapter is served. */
  readonly adapterName?: string;
  /** Whether it is served when the server starts again. */
  readonly isServed?: boolean;
}

/** What a job is made of. */
export type JobRequest = Pick<
  JobRecord,
  | "model"
  | "suffix"
  | "trainingFile"
  | "validationFile"
  | "hyperparameters"
  | "method"
  | "beta"
  | "seed"
  | "metadata"
>;

export interface RunOutcome {
  readonly kind: "succeeded" | "failed" | "stopped";
  readonly message?: string;
}

/** A training that goes on. */
export interface RunningJob {
  readonly outcome: Promise<RunOutcome>;
  /** Asks it to stop after a step; it keeps what it has. */
  stop(): void;
}

/** Who trains: another process. */
export type JobRunner = (task: {
  readonly record: JobRecord;
  /** Where data lies. */
  readonly training: string;
  readonly validation: string | undefined;
  /** The run's folder, which may hold a run that is to go on. */
  readonly folder: string;
}) => RunningJob;

export interface JobStoreOptions {
  readonly files: Files;
  readonly folder: string;
  readonly runner: JobRunner;
  readonly adapters: AdapterTable;
  /** Where an uploaded file lies. */
  readonly dataPath: (id: string) => string | undefined;
  readonly now: () => number;
  readonly onEvent?: (event: string, facts: Readonly<Record<string, unknown>>) => void;
  /** Jobs that wait and run at most. */
  readonly queued?: number;
}

/** Reads all jobs of a folder, the oldest first. */
export async function readJobs(files: Files, data: string): Promise<JobRecord[]> {
  const folder = files.join(data, "jobs");
  await files.makeDirectory(folder);
  const found: JobRecord[] = [];
  for (const { path } of await files.list(folder)) {
    const id = path.split(/[\\/]/).at(-1)!;
    const record = files.join(path, "job.json");
    if (!idPattern.test(id) || !(await files.info(record))) continue;
    const value = parseJson(await files.readText(record, maxRecordBytes), record);
    if (!isJsonObject(value) || value["id"] !== id) {
      throw new FormatError(`${record}: is no job — remove its folder.`, { path: record });
    }
    found.push(value as unknown as JobRecord);
  }
  return found.sort((a, b) => a.created - b.created || a.id.localeCompare(b.id));
}

/** The folder of a job's run, which holds its adapter in the end. */
export function runFolder(files: Files, data: string, id: string): string {
  return files.join(data, "jobs", id, "run");
}

const isOver = ({ status }: JobRecord): boolean =>
  status === "succeeded" || status === "failed" || status === "cancelled";

export class JobStore {
  readonly #options: JobStoreOptions;
  readonly #jobs: Map<string, JobRecord>;
  #running: { readonly id: string; readonly job: RunningJob } | undefined;
  #isClosed = false;
  #loop: Promise<void> | undefined;

  /** @param known as `readJobs` gave them */
  constructor(options: JobStoreOptions, known: readonly JobRecord[]) {
    this.#options = options;
    this.#jobs = new Map(known.map((record) => [record.id, record]));
  }

  /** Goes on with what an ended server left: the job that ran, then those that waited. */
  start(): void {
    this.#loop ??= this.#work().finally(() => {
      this.#loop = undefined;
    });
  }

  get list(): readonly JobRecord[] {
    return [...this.#jobs.values()];
  }

  get(id: string): JobRecord | undefined {
    return this.#jobs.get(id);
  }

  /** Whether a job that is not over needs a file. */
  needs(file: string): boolean {
    return this.list.some(
      (job) => !isOver(job) && (job.trainingFile === file || job.validationFile === file),
    );
  }

  #path(id: string, ...names: readonly string[]): string {
    const { files, folder } = this.#options;
    return files.join(folder, "jobs", id, ...names);
  }

  async #save(record: JobRecord): Promise<void> {
    this.#jobs.set(record.id, record);
    await this.#options.files.writeText(
      this.#path(record.id, "job.json"),
      `${JSON.stringify(record)}\n`,
    );
  }

  async #change(id: string, change: Partial<JobRecord>): Promise<JobRecord> {
    const record = { ...this.#jobs.get(id)!, ...change };
    await this.#save(record);
    return record;
  }

  async #tell(id: string, message: string, level: JobEventBody["level"] = "info"): Promise<void> {
    const event: JobEventBody = {
      id: newId("ftevent-"),
      object: "fine_tuning.job.event",
      created_at: Math.floor(this.#options.now() / 1000),
      level,
      message,
      type: "message",
      data: null,
    };
    await this.#options.files.append(this.#path(id, "events.jsonl"), `${JSON.stringify(event)}\n`);
    this.#options.onEvent?.("job", { job: id, level, status: this.#jobs.get(id)?.status });
  }

  /** @throws StateError when too many wait. */
  async create(request: JobRequest): Promise<JobRecord> {
    const { queued = 100, files } = this.#options;
    const open = this.list.filter((job) => !isOver(job)).length;
    if (this.#isClosed) throw new StateError("jobs: the server is shutting down.");
    if (open >= queued) {
      throw new StateError(`jobs: ${open} jobs wait or run, which is all that are taken.`);
    }
    const record: JobRecord = {
      ...request,
      id: newId("ftjob-"),
      created: Math.floor(this.#options.now() / 1000),
      status: "queued",
    };
    await files.makeDirectory(this.#path(record.id));
    await this.#save(record);
    await this.#tell(record.id, `Created fine-tuning job: ${record.id}`);
    this.start();
    return record;
  }

  /**
   * Ends a job; one that runs stops after its step.
   * @throws StateError for one that is over.
   */
  async cancel(id: string): Promise<JobRecord> {
    const record = this.#jobs.get(id)!;
    if (isOver(record)) {
      throw new StateError(`jobs: job ${id} is ${record.status} and cannot be cancelled.`);
    }
    const finished = Math.floor(this.#options.now() / 1000);
    const cancelled = await this.#change(id, { status: "cancelled", finished });
    await this.#tell(id, "Fine-tuning job cancelled");
    if (this.#running?.id === id) this.#running.job.stop();
    return cancelled;
  }

  /**
   * Where the adapter of a job that succeeded lies.
   * @throws MissingError for a job that is not there, or not that far.
   */
  async adapterFolder(id: string): Promise<string> {
    const record = this.#jobs.get(id);
    if (record?.status === "succeeded") return this.#path(id, "run");
    throw new MissingError(
      record
        ? `job ${id} is ${record.status}: it has no adapter yet.`
        : `there is no job ${id.slice(0, 64)}.`,
    );
  }

  /** An adapter was taken away: it is not served at the next start either. */
  async forget(name: string): Promise<void> {
    for (const job of this.list) {
      if (job.adapterName === name && job.isServed) await this.#change(job.id, { isServed: false });
    }
  }

  /** What happened to a job, the newest first. */
  async events(id: string): Promise<readonly JobEventBody[]> {
    const { files } = this.#options;
    const record = this.#jobs.get(id)!;
    const path = this.#path(id, "events.jsonl");
    const said = (await files.info(path))
      ? (await files.readText(path, maxEventBytes))
          .split("\n")
          .slice(0, -1)
          .map((line) => parseJson(line, path) as unknown as JobEventBody)
      : [];
    const steps = await this.#steps(record);
    return [...said, ...steps]
      .map((event, order) => ({ event, order }))
      .sort((a, b) => b.event.created_at - a.event.created_at || b.order - a.order)
      .map(({ event }) => event)
      .slice(0, maxEvents);
  }

  /** Steps of a run as events: their numbers are those of the run's own log. */
  async #steps({ id, started, validationFile }: JobRecord): Promise<JobEventBody[]> {
    const { files } = this.#options;
    const folder = this.#path(id, "run");
    if (started === undefined || !(await isRun(files, folder))) return [];
    const { metrics: all } = await readRun(files, folder);
    // Where there is no file to judge by, what was judged are the examples themselves.
    const metrics = all.filter(({ loss }) => validationFile !== undefined || loss !== undefined);
    let seconds = 0;
    return metrics.slice(-maxEvents).map((line): JobEventBody => {
      const { step, loss, heldOutLoss, seconds: gone, ...others } = line;
      seconds = gone ?? seconds;
      const data: Record<string, number> = { step };
      if (loss !== undefined) data["train_loss"] = loss;
      if (heldOutLoss !== undefined) data["full_valid_loss"] = heldOutLoss;
      for (const [name, value] of Object.entries(others)) data[name] = value;
      return {
        id: `ftevent-${id.slice(6)}-${step}-${loss === undefined ? "v" : "t"}`,
        object: "fine_tuning.job.event",
        created_at: started + Math.floor(seconds),
        level: "info",
        message:
          loss === undefined
            ? `Step ${step}: full validation loss=${heldOutLoss?.toFixed(4)}`
            : `Step ${step}: training loss=${loss.toFixed(4)}`,
        type: "metrics",
        data,
      };
    });
  }

  /** Waits until the job that runs has stopped; it stays one that is to go on. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#running?.job.stop();
    await this.#loop;
  }

  #next(): JobRecord | undefined {
    const { list } = this;
    return (
      list.find(({ status }) => status === "running") ??
      list.find(({ status }) => status === "queued" || status === "validating_files")
    );
  }

  async #work(): Promise<void> {
    for (;;) {
      const record = this.#isClosed ? undefined : this.#next();
      if (!record) return;
      try {
        await this.#run(record);
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        await this.#fail(record.id, message);
      }
    }
  }

  async #fail(id: string, said: string): Promise<void> {
    const message = this.#withoutPaths(id, said);
    const finished = Math.floor(this.#options.now() / 1000);
    // The status comes last: who sees it finds all that happened.
    await this.#tell(id, `The job failed: ${message}`, "error");
    await this.#change(id, { status: "failed", finished, error: message });
  }

  /** A sentence without this machine's paths. */
  #withoutPaths(id: string, said: string): string {
    const { dataPath, folder } = this.#options;
    const { trainingFile, validationFile = trainingFile } = this.#jobs.get(id)!;
    let message = said;
    for (const file of [trainingFile, validationFile]) {
      const path = dataPath(file);
      if (path !== undefined) message = message.replaceAll(path, file);
    }
    return message
      .replaceAll(this.#path(id, "run"), "the run")
      .replaceAll(folder, "the data folder");
  }

  async #run({ id }: JobRecord): Promise<void> {
    const { runner, dataPath, now } = this.#options;
    const before = this.#jobs.get(id)!;
    const training = dataPath(before.trainingFile);
    const validation =
      before.validationFile === undefined ? undefined : dataPath(before.validationFile);
    if (
      training === undefined ||
      (before.validationFile !== undefined && validation === undefined)
    ) {
      await this.#fail(id, "a file of the job is gone — upload it and create the job again.");
      return;
    }
    const isAgain = before.status === "running";
    const started = before.started ?? Math.floor(now() / 1000);
    const record = await this.#change(id, { status: "running", started });
    await this.#tell(id, isAgain ? "Fine-tuning job goes on" : "Fine-tuning job started");
    const job = runner({ record, training, validation, folder: this.#path(id, "run") });
    this.#running = { id, job };
    // A cancel that came while it began.
    if (this.#isClosed || this.#jobs.get(id)!.status === "cancelled") job.stop();
    const outcome = await job.outcome.finally(() => {
      this.#running = undefined;
    });
    if (this.#jobs.get(id)!.status === "cancelled") return;
    if (outcome.kind === "stopped" && this.#isClosed) return;
    if (outcome.kind !== "succeeded") {
      await this.#fail(id, outcome.message ?? "the training was stopped from outside.");
      return;
    }
    await this.#serve(id);
  }

  /** The adapter under its name, loaded where there is room. */
  async #serve(id: string): Promise<void> {
    const { files, adapters, now } = this.#options;
    const record = this.#jobs.get(id)!;
    const folder = this.#path(id, "run");
    const { metrics } = await readRun(files, folder);
    const trainedTokens = Math.max(0, ...metrics.map((line) => line["tokens"] ?? 0));
    const short = id.slice(6, 14);
    const wanted = `ft:${adapters.base}:${record.suffix ?? short}`;
    const isTaken =
      adapters.get(wanted) !== undefined ||
      this.list.some(({ adapterName }) => adapterName === wanted);
    const name = isTaken ? `${wanted}-${short}` : wanted;
    let isServed = true;
    let why = "";
    try {
      await adapters.load({ name, folder, source: id, created: Math.floor(now() / 1000) });
    } catch (error) {
      isServed = false;
      why = error instanceof Error ? error.message : String(error);
    }
    const finished = Math.floor(now() / 1000);
    await this.#tell(id, `New fine-tuned model created: ${name}`);
    if (!isServed) await this.#tell(id, `It is not served yet: ${why}`, "warn");
    await this.#tell(id, "The job has successfully completed");
    await this.#change(id, {
      status: "succeeded",
      finished,
      trainedTokens,
      adapterName: name,
      isServed,
    });
  }
}

/** A job as the interface has it. */
export function jobBody(record: JobRecord): JobBody {
  return {
    id: record.id,
    object: "fine_tuning.job",
    created_at: record.created,
    finished_at: record.finished ?? null,
    estimated_finish: null,
    status: record.status,
    model: record.model,
    fine_tuned_model: record.status === "succeeded" ? (record.adapterName ?? null) : null,
    training_file: record.trainingFile,
    validation_file: record.validationFile ?? null,
    hyperparameters: record.hyperparameters,
    method: record.method,
    seed: record.seed,
    trained_tokens: record.trainedTokens ?? null,
    error:
      record.status === "failed"
        ? { code: "job_failed", message: record.error ?? "", param: null }
        : null,
    organization_id: "org-local",
    result_files: [],
    integrations: [],
    metadata: record.metadata ?? null,
  };
}
