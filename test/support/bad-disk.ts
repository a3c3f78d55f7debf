/** Disks that are full, read-only or not ours: a shell in its own view of the file systems. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { cliPath, type Ended } from "./run-cli.ts";

/** Why mounts cannot be tried here; undefined where they can. */
export function noMounts(): string | undefined {
  if (process.platform !== "linux") return "mounts without rights of root are Linux's";
  const { status } = spawnSync("unshare", ["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]);
  return status === 0 ? undefined : "this machine permits no mounts of our own";
}

/** Runs a program to its end. */
export function ended(child: ChildProcess): Promise<Ended> {
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ["", ""];
    child.stdout!.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr!.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

/**
 * Runs a shell script whose mounts nobody else sees, and that are gone when it ends; `cli` in it is the
 * built command line.
 */
export function inMounts(script: string, cwd: string): Promise<Ended> {
  const cli = `cli() { "${process.execPath}" "${cliPath}" "$@"; }`;
  return ended(
    spawn("unshare", ["-rm", "sh", "-c", `set -e\n${cli}\n${script}`], {
      cwd,
      stdio: ["ignore", "pipe", "pipe"],
    }),
  );
}
