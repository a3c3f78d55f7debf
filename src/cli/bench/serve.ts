/** Our side of the protocol. */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Ready, Steps } from "./arm.ts";

/** What a step gives beside its time. */
export interface StepResult {
  readonly loss?: number;
  readonly tokens?: readonly number[];
  /** Of streams that begin together: milliseconds to the first token, the middle one of all. */
  readonly firstMs?: number;
}

export interface Work {
  readonly version: string;
  readonly note?: string;
  step(): Promise<StepResult>;
  /** Resident memory is part of each answer. */
  readonly isAboutMemory?: boolean;
  /** More for the last answer. */
  end?(): Promise<object>;
}

/** Peak resident memory of this process in MB: VmHWM on Linux. */
function peakRssMb(): number {
  if (process.platform !== "linux") return round(process.resourceUsage().maxRSS / 1024);
  const status = readFileSync("/proc/self/status", "utf8");
  return round(Number(/VmHWM:\s+(\d+) kB/.exec(status)![1]) / 1024);
}

function rssMb(): number {
  (globalThis as { gc?: () => void }).gc?.();
  return round(process.memoryUsage.rss() / 2 ** 20);
}

const round = (mb: number): number => Math.round(mb * 10) / 10;

const print = (message: object): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

/** Prints the ready line, then answers `{"steps": n}` until `{"exit": true}`. */
export async function serve(work: Work, threads: number): Promise<void> {
  const ready: Ready = { version: work.version, threads, ...(work.note && { note: work.note }) };
  print({ ready: true, ...ready });
  for await (const line of createInterface({ input: process.stdin })) {
    if (!line.trim()) continue;
    const message = JSON.parse(line) as { steps?: number; exit?: boolean };
    if (message.exit) break;
    const ms: number[] = [];
    const loss: number[] = [];
    const firstMs: number[] = [];
    let tokens: readonly number[] | undefined;
    for (let i = 0; i < (message.steps ?? 0); i++) {
      const start = performance.now();
      const result = await work.step();
      ms.push(performance.now() - start);
      if (result.loss !== undefined) loss.push(result.loss);
      if (result.firstMs !== undefined) firstMs.push(result.firstMs);
      tokens = result.tokens ?? tokens;
    }
    const answer: Steps = {
      ms,
      loss,
      ...(tokens && { tokens }),
      ...(firstMs.length > 0 && { firstMs }),
      ...(work.isAboutMemory && { rssMb: rssMb() }),
    };
    print(answer);
  }
  print({ peakRssMb: peakRssMb(), ...(await work.end?.()) });
}
