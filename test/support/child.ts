/** A script of this folder in a process of its own: for its memory, or its environment. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

export interface ChildOptions {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly timeout?: number;
}

/** Runs `test/support/<script>` and returns what it printed. */
export async function runScript(
  script: string,
  { args = [], env = {}, timeout = 110_000 }: ChildOptions = {},
): Promise<{ stdout: string; stderr: string }> {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const root = fileURLToPath(new URL("../..", import.meta.url));
  return promisify(execFile)(process.execPath, ["--expose-gc", "--import", "tsx", path, ...args], {
    cwd: root,
    env: { ...process.env, ...env },
    timeout,
    maxBuffer: 2 ** 28,
  });
}
