/** What a person sees, what a machine reads, and the exit code. */
import type { Output } from "../output.ts";
import { type Machine, showMachine } from "./machine.ts";
import { showRow } from "./results.ts";
import type { RunResult } from "./run.ts";

/** Prints a run; the process ends with 1 when it is a failure. */
export function report(
  output: Pick<Output, "line" | "table" | "style" | "json">,
  machine: Machine,
  { results, isFailure }: RunResult,
): void {
  output.line(showMachine(machine));
  output.line();
  output.table(["work", "ours", "theirs", "ratio", "limit", "holds"], results.map(showRow), [
    "left",
    "right",
    "left",
    "right",
    "right",
    "left",
  ]);
  output.line();
  for (const { work, note } of results) {
    if (note) output.line(output.style(`${work}: ${note}`, "dim"));
  }
  output.json({ machine, results });
  if (isFailure) process.exitCode = 1;
}
