/** The programs in examples/: they type-check, and two of them run, in few steps. */
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const examples = readdirSync(join(root, "examples")).filter((name) => name.endsWith(".ts"));
const run = promisify(execFile);

/** A folder with the model and the data that the programs name, in which their runs go away again. */
const place = mkdtempSync(join(tmpdir(), "plasticity-examples-"));
beforeAll(() => {
  for (const name of ["models", "data"]) {
    symlinkSync(join(root, name), join(place, name), "junction");
  }
});
afterAll(() => rmSync(place, { recursive: true }));

async function runExample(name: string, argument: string): Promise<string> {
  expect(existsSync(join(root, "dist", "index.js")), 'run "npm test", which builds dist').toBe(
    true,
  );
  const tsx = import.meta.resolve("tsx");
  const path = join(root, "examples", name);
  const { stdout } = await run(process.execPath, ["--import", tsx, path, argument], { cwd: place });
  return stdout;
}

describe("the examples", () => {
  it("type-check", async () => {
    const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
    const said = await run(process.execPath, [tsc, "-p", join(root, "examples")]).then(
      () => "",
      (error: { stdout: string }) => error.stdout,
    );
    // Errors of the sources themselves are found by "npm run check".
    expect(said.split("\n").filter((line) => line !== "" && !/^( |src\/)/.test(line))).toEqual([]);
  });

  it.each(examples)("%s says how it is run, and is short", (name) => {
    const text = readFileSync(join(root, "examples", name), "utf8");
    expect(text).toContain(` *   npx tsx examples/${name} [`);
    expect(text.split("\n").length).toBeLessThan(80);
  });

  it("resume-a-run.ts goes on to the losses of an undisturbed training", async () => {
    expect(await runExample("resume-a-run.ts", "4")).toBe(
      "at step 0 of 4\nat step 2 of 4\n4 steps; every loss is that of an undisturbed training: true\n",
    );
    expect(readdirSync(join(place, "runs", "example-resumed"))).toContain("result.json");
  });

  it("mix-adapters-in-a-batch.ts answers with each adapter and the base in one batch", async () => {
    const lines = (await runExample("mix-adapters-in-a-batch.ts", "25")).trimEnd().split("\n");
    const texts = lines.map((line) => /^slot \d: (".*")$/.exec(line)?.[1]);
    expect(lines.map((line) => line.slice(0, 7))).toEqual(["slot 0:", "slot 1:", "slot 2:"]);
    // Another adapter in each row, so other answers to the same prompt.
    expect(new Set(texts).size).toBe(3);
    expect(texts).not.toContain(undefined);
  });
});
