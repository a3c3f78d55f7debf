/** Texts of many callers embedded together: what comes while a batch runs is the next batch. */
import { OptionError, StateError } from "../../errors.ts";
import type { TextEmbedder } from "../embed.ts";
import { BusyError } from "./queue.ts";

export interface EmbedBatcherOptions {
  /** Texts of one batch at most, 1 to 1024; default 32. */
  readonly batchSize?: number;
  /** Texts that wait at most; default 4096. */
  readonly queued?: number;
  /**
   * How long the first text of a batch waits for others, where fewer than `batchSize` are there. Default: a
   * turn of the microtasks, so that only callers of one moment share a batch while nothing runs.
   */
  readonly wait?: () => Promise<void>;
}

/** What a caller gets. */
export interface Embedded {
  /** One vector for each text, `dims` numbers. */
  readonly vectors: readonly Float32Array<ArrayBuffer>[];
  /** Tokens that the model read. */
  readonly tokens: number;
}

interface Job {
  readonly texts: readonly string[];
  readonly vectors: Float32Array<ArrayBuffer>[];
  readonly signal: AbortSignal | undefined;
  tokens: number;
  resolve(result: Embedded): void;
  reject(error: unknown): void;
}

/** One text of a job. */
interface Item {
  readonly job: Job;
  readonly index: number;
}

export class EmbedBatcher {
  readonly #embedder: Pick<TextEmbedder, "embed" | "encode" | "dims">;
  readonly #batchSize: number;
  readonly #limit: number;
  readonly #wait: () => Promise<void>;
  readonly #items: Item[] = [];
  #isRunning = false;

  /** @throws OptionError for a size outside its range. */
  constructor(
    embedder: Pick<TextEmbedder, "embed" | "encode" | "dims">,
    options: EmbedBatcherOptions = {},
  ) {
    const { batchSize = 32, queued = 4096, wait = () => Promise.resolve() } = options;
    if (!(Number.isInteger(batchSize) && batchSize >= 1 && batchSize <= 1024)) {
      throw new OptionError(
        `embed: batchSize must be a whole number from 1 to 1024, got ${batchSize}.`,
      );
    }
    if (!(Number.isInteger(queued) && queued >= batchSize && queued <= 1e6)) {
      throw new OptionError(
        `embed: queued must be a whole number from batchSize, ${batchSize}, to 1e6, got ${queued}.`,
      );
    }
    this.#embedder = embedder;
    this.#batchSize = batchSize;
    this.#limit = queued;
    this.#wait = wait;
  }

  /** Texts that wait. */
  get queued(): number {
    return this.#items.length;
  }

  /**
   * Vectors of texts. Those of a caller whose signal fires are not begun.
   * @throws BusyError when more texts wait than are taken, StateError when the signal fires; as
   * `TextEmbedder.embed` for a text that cannot be read, to the caller who sent it alone.
   */
  async embed(texts: readonly string[], signal?: AbortSignal): Promise<Embedded> {
    if (texts.length === 0) return { vectors: [], tokens: 0 };
    if (this.#items.length + texts.length > this.#limit) {
      throw new BusyError(
        `embed: ${this.#items.length} texts wait, and ${texts.length} more would be more than ${this.#limit} — try again later, or send fewer.`,
        { limit: "queued" },
      );
    }
    return new Promise((resolve, reject) => {
      const job: Job = { texts, vectors: [], signal, tokens: 0, resolve, reject };
      for (let index = 0; index < texts.length; index++) this.#items.push({ job, index });
      if (!this.#isRunning) void this.#work();
    });
  }

  async #work(): Promise<void> {
    this.#isRunning = true;
    try {
      while (this.#items.length > 0) {
        if (this.#items.length < this.#batchSize) await this.#wait();
        const batch = this.#items.splice(0, this.#batchSize);
        for (const { job } of batch) {
          if (job.signal?.aborted) this.#fail(job, new StateError("embed: ended by a signal."));
        }
        await this.#run(batch.filter(({ job }) => !job.signal?.aborted));
      }
    } finally {
      this.#isRunning = false;
    }
  }

  async #run(batch: readonly Item[]): Promise<void> {
    if (batch.length === 0) return;
    try {
      const texts = batch.map(({ job, index }) => job.texts[index]!);
      const { data } = await this.#embedder.embed(texts, { batchSize: this.#batchSize });
      const { dims } = this.#embedder;
      batch.forEach(({ job, index }, row) => {
        job.vectors[index] = data.slice(row * dims, (row + 1) * dims);
        job.tokens += this.#embedder.encode(texts[row]!).ids.length;
        // Items keep their order, so the last one ends a job.
        if (index < job.texts.length - 1) return;
        job.resolve({ vectors: job.vectors, tokens: job.tokens });
      });
    } catch (error) {
      const jobs = [...new Set(batch.map(({ job }) => job))];
      if (jobs.length === 1) {
        this.#fail(jobs[0]!, error);
        return;
      }
      // One caller's text must not cost the others their answer.
      for (const job of jobs) await this.#run(batch.filter((item) => item.job === job));
    }
  }

  /** A job that failed leaves nothing in the queue. */
  #fail(job: Job, error: unknown): void {
    for (let i = this.#items.length - 1; i >= 0; i--) {
      if (this.#items[i]!.job === job) this.#items.splice(i, 1);
    }
    job.reject(error);
  }
}
