/** One side of a comparison: a process of its own that answers JSON lines (bench/peers/README.md). */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { MissingError, PlasticityError, StateError } from "../../index.ts";

/** The first line of an arm. */
export interface Ready {
  readonly version: string;
  readonly threads: number;
  readonly note?: string;
  readonly extra?: Readonly<Record<string, unknown>>;
}

/** The answer to `{"steps": n}`. */
export interface Steps {
  /** Of each step, in milliseconds. */
  readonly ms: readonly number[];
  readonly loss: readonly number[];
  readonly tokens?: readonly number[];
  /** Of each step, where it is a wave of streams: milliseconds to the first token of the middle one. */
  readonly firstMs?: readonly number[];
  /** Resident memory after the steps, where the work is about memory. */
  readonly rssMb?: number;
}

/** The answer to `{"exit": true}`. */
export interface Ended {
  readonly peakRssMb: number;
  readonly products?: readonly ProductRound[];
}

/** Rates of one round in GFLOP/s: the products of a training step, and a product of its own. */
export interface ProductRound {
  readonly step: number;
  readonly gemm: number;
  /** Share of the step's time in those products. */
  readonly share: number;
}

/** What Node and Python say when a package is not installed. */
const notInstalled = /ERR_MODULE_NOT_FOUND|ModuleNotFoundError|No module named/;

const patience = 15 * 60_000;

export class Arm {
  readonly name: string;
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  #errors = "";
  #ready: Ready | undefined;

  private constructor(
    name: string,
    command: readonly string[],
    signal: AbortSignal | undefined,
    env: Readonly<Record<string, string>>,
  ) {
    this.name = name;
    this.#child = spawn(command[0]!, command.slice(1), {
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...process.env, ...env },
      ...(signal && { signal }),
    });
    // A failure to start or to write shows as an early end of the lines.
    this.#child.on("error", (error) => {
      this.#errors += String(error);
    });
    this.#child.stdin!.on("error", () => undefined);
    this.#child.stderr!.on("data", (chunk: Buffer) => {
      this.#errors = (this.#errors + chunk.toString()).slice(-4000);
    });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  /**
   * Starts a process and waits until it has its model.
   * @throws MissingError when a package that it needs is not installed.
   */
  /** @param env set in the process beside ours */
  static async start(
    name: string,
    command: readonly string[],
    signal?: AbortSignal,
    env: Readonly<Record<string, string>> = {},
  ): Promise<Arm> {
    const arm = new Arm(name, command, signal, env);
    arm.#ready = await arm.#answer<Ready>();
    return arm;
  }

  get ready(): Ready {
    return this.#ready!;
  }

  steps(count: number): Promise<Steps> {
    return this.#ask<Steps>({ steps: count });
  }

  async end(): Promise<Ended> {
    return this.#ask<Ended>({ exit: true });
  }

  /** Ends the process at once; for when something else failed. */
  kill(): void {
    this.#child.kill("SIGKILL");
  }

  #ask<T>(message: object): Promise<T> {
    this.#child.stdin!.write(`${JSON.stringify(message)}\n`);
    return this.#answer<T>();
  }

  async #answer<T>(): Promise<T> {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      this.kill();
    }, patience);
    try {
      while (true) {
        const { value, done } = await this.#lines.next();
        if (done) throw await this.#failure(isLate);
        // Libraries greet their users on the same stream.
        if (value.startsWith("{")) return JSON.parse(value) as T;
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async #failure(isLate: boolean): Promise<PlasticityError> {
    const child = this.#child;
    if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) {
      await new Promise((resolve) => child.once("exit", resolve));
    }
    if (isLate) return new StateError(`bench: ${this.name} gave no answer in 15 minutes.`);
    const said = this.#errors.trim().split("\n").slice(-6).join("\n");
    const isMissing = notInstalled.test(this.#errors) || child.pid === undefined;
    if (!this.#ready && isMissing) return new MissingError(`bench: ${this.name}: ${said}`);
    const how = child.signalCode ?? `code ${child.exitCode}`;
    return new PlasticityError("internal", `bench: ${this.name} ended early (${how}): ${said}`);
  }
}
