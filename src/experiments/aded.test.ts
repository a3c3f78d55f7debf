/** The quick form of the experiment, as `plasticity reproduce aded --budget quick` runs it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { nodeHost } from "../host/node.ts";
import { nodePackages } from "../host/node-packages.ts";
import { experiment } from "./aded.ts";
import type { CellResult } from "./experiment.ts";
import { reproduce } from "./runner.ts";

const folder = mkdtempSync(join(tmpdir(), "plasticity-aded-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it("decodes as plainly in every arm, in fewer passes where a table learns", async () => {
  const cells: CellResult[] = [];
  const result = await reproduce({
    experiment,
    claimFile: new URL("../../reproduce/aded/claim.json", import.meta.url).pathname,
    budget: "quick",
    host: nodeHost(),
    packages: nodePackages(join(folder, "cache")),
    openBackend: () => nodeOrt({ threads: 1 }),
    provenance: { machine: { cores: 1 }, packageVersion: "0" },
    onCell: (cell) => void cells.push(cell),
  });
  expect(result!.verdict).toBe("undecided");
  expect(cells.length).toBe(24);
  const of = (arm: string, task: string): CellResult["metrics"] =>
    cells.find((cell) => cell.arm === arm && cell.task === task)!.metrics;
  for (const { metrics } of cells) expect(metrics["violations"]).toBe(0);
  for (const task of ["greedy", "shift"]) {
    expect(of("plain", task)["tokensPerPass"]).toBe(1);
    expect(of("aded", task)["tokensPerPass"]).toBeGreaterThan(of("static", task)["tokensPerPass"]!);
    expect(of("aded-empty", task)["tokensPerPass"]).toBeGreaterThan(1.5);
  }
  // Without exploration a draft is one path of at most six tokens.
  expect(of("aded-exploit", "greedy")["nodesPerPass"]).toBeLessThanOrEqual(6);
  expect(of("aded-thrifty", "greedy")["nodesPerPass"]).toBeLessThan(
    of("aded", "greedy")["nodesPerPass"]!,
  );
});
