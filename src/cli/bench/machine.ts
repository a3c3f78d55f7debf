/** On what the numbers were taken. */
import { execFile } from "node:child_process";
import { availableParallelism, cpus, totalmem } from "node:os";
import { promisify } from "node:util";

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGb: number;
  readonly platform: string;
  readonly node: string;
  readonly onnxruntime: string;
  /** Libraries compared with, and their versions. */
  readonly peers: readonly string[];
  /** Of the checkout; null outside one. */
  readonly commit: string | null;
  readonly threads: number;
  readonly rounds: number;
  /** ISO 8601. */
  readonly date: string;
}

const run = promisify(execFile);

/** The checkout's commit, with `+` when files differ from it. */
async function commitOf(root: string): Promise<string | null> {
  try {
    const head = await run("git", ["-C", root, "rev-parse", "--short", "HEAD"]);
    const changes = await run("git", ["-C", root, "status", "--porcelain", "-uno"]);
    return head.stdout.trim() + (changes.stdout.trim() ? "+" : "");
  } catch {
    return null;
  }
}

export async function describeMachine(
  root: string,
  facts: Pick<Machine, "onnxruntime" | "peers" | "threads" | "rounds" | "date">,
): Promise<Machine> {
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryGb: Math.round(totalmem() / 2 ** 30),
    platform: `${process.platform} ${process.arch}`,
    node: process.version,
    commit: await commitOf(root),
    ...facts,
  };
}

export function showMachine(machine: Machine): string {
  const { cpu, cores, memoryGb, node, onnxruntime, peers, commit, threads, rounds } = machine;
  return [
    `${cpu}, ${cores} cores, ${memoryGb} GB`,
    `${threads} threads`,
    `medians of ${rounds} interleaved rounds`,
    `Node ${node}`,
    `onnxruntime ${onnxruntime}`,
    ...peers,
    `commit ${commit ?? "unknown"}`,
  ].join(" · ");
}
