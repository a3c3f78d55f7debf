/** Trains in a process of its own: `plasticity finetune` in a run's folder, which goes on where it was killed. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { constants, setPriority } from "node:os";
import { join } from "node:path";
import type { JobRecord, JobRunner, RunningJob, RunOutcome } from "./job-store.ts";

/** Times that a run is tried which another process still holds, and the pause between. */
const [tries, pauseMs] = [10, 1000];
/** Milliseconds for a step's end, after which a process that was asked to stop is ended. */
const graceMs = 20_000;
/** The rate that a multiplier of 1 stands for. */
const learningRate = 2e-3;
const maxTail = 8192;

export interface NodeJobsOptions {
  /** The folder or name of the base model, as `--model` takes it. */
  readonly model: string;
  /** The built command line. */
  readonly cliPath: string;
  readonly threads: number | undefined;
}

/** The command that begins a run. */
function argumentsOf(
  record: JobRecord,
  training: string,
  validation: string | undefined,
  folder: string,
  { model }: NodeJobsOptions,
): string[] {
  const { n_epochs, batch_size, learning_rate_multiplier } = record.hyperparameters;
  const some = (name: string, value: string | number | undefined): string[] =>
    value === undefined ? [] : [`--${name}=${value}`];
  return [
    "finetune",
    `--model=${model}`,
    `--data=${training}`,
    // Without a file to judge by all examples are learnt from, and the loss on them is told alone.
    `--held-out=${validation ?? training}`,
    `--out=${folder}`,
    ...some("epochs", n_epochs === "auto" ? undefined : n_epochs),
    ...some("batch-size", batch_size === "auto" ? undefined : batch_size),
    ...some(
      "learning-rate",
      learning_rate_multiplier === "auto" ? undefined : learningRate * learning_rate_multiplier,
    ),
    ...some("objective", record.beta === undefined ? undefined : `dpo:beta=${record.beta}`),
    `--seed=${record.seed}`,
    "--adapter=lora",
    // Answers before and after are for people at a terminal.
    "--eval-limit=0",
  ];
}

/** @throws nothing: what goes wrong is an outcome. */
export function nodeJobs(options: NodeJobsOptions): JobRunner {
  return ({ record, training, validation, folder }) => {
    let child: ChildProcess | undefined;
    let isStopped = false;
    let killer: NodeJS.Timeout | undefined;
    let wake: (() => void) | undefined;

    const once = (args: readonly string[]): Promise<{ code: number | null; tail: string }> =>
      new Promise((resolve) => {
        let tail = "";
        const own = spawn(process.execPath, [options.cliPath, ...args], {
          stdio: ["ignore", "ignore", "pipe", "ipc"],
        });
        child = own;
        own.stderr!.setEncoding("utf8").on("data", (text: string) => {
          tail = (tail + text).slice(-maxTail);
        });
        own.on("error", (error) => resolve({ code: 1, tail: error.message }));
        own.on("close", (code) => resolve({ code, tail }));
        try {
          // Who asks comes before who trains.
          if (own.pid !== undefined) setPriority(own.pid, constants.priority.PRIORITY_BELOW_NORMAL);
        } catch {
          // Where priorities cannot be set all are equal.
        }
        if (isStopped) ask(own);
      });

    const ask = (own: ChildProcess): void => {
      if (own.connected) own.send("stop", () => {});
      killer ??= setTimeout(() => own.kill("SIGKILL"), graceMs);
    };

    const train = async (): Promise<RunOutcome> => {
      const more = [
        ...(options.threads === undefined ? [] : [`--threads=${options.threads}`]),
        "--json",
      ];
      for (let attempt = 1; ; attempt++) {
        if (isStopped) return { kind: "stopped" };
        const isBegun = existsSync(join(folder, "run.json"));
        const args = isBegun
          ? ["finetune", `--resume=${folder}`]
          : argumentsOf(record, training, validation, folder, options);
        const { code, tail } = await once([...args, ...more]);
        if (code === 0) return { kind: "succeeded" };
        if (isStopped) return { kind: "stopped" };
        // The process of a server that was killed ends after its step.
        if (/\block\b|another process/i.test(tail) && attempt < tries) {
          await new Promise<void>((resolve) => {
            wake = resolve;
            setTimeout(resolve, pauseMs);
          });
          continue;
        }
        const message = tail.trim().split("\n").at(-1) || `the training ended with code ${code}.`;
        return { kind: "failed", message };
      }
    };

    const running: RunningJob = {
      outcome: train().finally(() => clearTimeout(killer)),
      stop: () => {
        isStopped = true;
        wake?.();
        if (child && child.exitCode === null) ask(child);
      },
    };
    return running;
  };
}
