import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { lock } from "./node-lock.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-lock-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("a lock", () => {
  it("is held once, and free after its release", async () => {
    const path = join(root, "a.lock");
    const first = await lock(path);
    await expect(lock(path)).rejects.toThrow(
      `${path}: held by process ${process.pid} — wait until it ends, or stop it first.`,
    );
    await first.release();
    await first.release();
    const second = await lock(path);
    await first.release();
    await expect(lock(path)).rejects.toThrow("held by process");
    await second.release();
    expect(readdirSync(root)).toEqual([]);
  });

  it("of a process that is gone is taken over", async () => {
    const path = join(root, "b.lock");
    const child = spawn(process.execPath, ["-e", ""]);
    await new Promise((resolve) => child.on("close", resolve));
    writeFileSync(path, JSON.stringify({ pid: child.pid, host: hostname(), start: "1" }));
    await (await lock(path)).release();
    // The same pid, another process: this one started at another time.
    writeFileSync(path, JSON.stringify({ pid: process.pid, host: hostname(), start: "1" }));
    if (process.platform === "linux") await (await lock(path)).release();
    // Cut short, or not ours: nobody is known to hold it.
    writeFileSync(path, "{");
    await (await lock(path)).release();
    expect(readdirSync(root)).toEqual(process.platform === "linux" ? [] : ["b.lock"]);
  });

  it("of another machine is left alone", async () => {
    const path = join(root, "c.lock");
    writeFileSync(path, JSON.stringify({ pid: 1, host: "elsewhere", start: "" }));
    await expect(lock(path)).rejects.toThrow(
      `${path}: held by process 1 on elsewhere — wait until it ends, or stop it first. If it is gone, remove this file.`,
    );
    rmSync(path);
  });

  it("goes to one of many that ask at once, also when the old holder is gone", async () => {
    const path = join(root, "d.lock");
    for (let round = 0; round < 20; round++) {
      writeFileSync(path, JSON.stringify({ pid: process.pid, host: hostname(), start: "1" }));
      const taken = await Promise.allSettled(Array.from({ length: 8 }, () => lock(path)));
      const held = taken.filter(({ status }) => status === "fulfilled");
      expect(held.length).toBe(1);
      await (held[0] as PromiseFulfilledResult<{ release(): Promise<void> }>).value.release();
      rmSync(path, { force: true });
    }
  });
});
