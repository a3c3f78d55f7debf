/** The quick form of the experiment, as `plasticity reproduce breadcrumbs --budget quick` runs it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { nodeHost } from "../host/node.ts";
import { nodePackages } from "../host/node-packages.ts";
import { Rng } from "../tensor/rng.ts";
import { experiment } from "./breadcrumbs.ts";
import type { CellResult } from "./experiment.ts";
import { fitHead } from "./merge-tasks.ts";
import { reproduce } from "./runner.ts";

const folder = mkdtempSync(join(tmpdir(), "plasticity-breadcrumbs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it("merges two and eight fine-tunes by every arm, with settings from pairs of tasks", async () => {
  const cells: CellResult[] = [];
  const result = await reproduce({
    experiment,
    claimFile: new URL("../../reproduce/breadcrumbs/claim.json", import.meta.url).pathname,
    budget: "quick",
    host: nodeHost(),
    packages: nodePackages(join(folder, "cache")),
    openBackend: () => nodeOrt({ threads: 1 }),
    provenance: { machine: { cores: 1 }, packageVersion: "0" },
    onCell: (cell) => void cells.push(cell),
  });
  expect(result).toBeDefined();
  expect(cells.length).toBe(16);
  const of = (arm: string, task: string): CellResult["metrics"] =>
    cells.find((cell) => cell.arm === arm && cell.task === task)!.metrics;
  const facts = ({ metrics }: CellResult) => [
    metrics["fineTuned"],
    metrics["gain"],
    metrics["barrier"],
  ];
  for (const cell of cells) {
    // All arms start from one base and its fine-tunes.
    expect(facts(cell)).toEqual(facts(cells[0]!));
    // At two tasks nothing is left to choose anew.
    if (cell.task === "t2") expect(cell.metrics["oracle"]).toBe(cell.metrics["normalised"]);
  }
  for (const task of ["t2", "t8"]) {
    expect(of("average", task)["alpha"]).toBe(1 / Number(task.slice(1)));
    expect(of("task-arithmetic", task)["kept"]).toBe(1);
    expect(of("breadcrumbs", task)["kept"]).toBeCloseTo(0.09, 6);
    expect(of("random-mask", task)["kept"]).toBe(of("breadcrumbs", task)["kept"]);
    expect(of("only-top", task)["kept"]).toBeCloseTo(0.99, 6);
    expect(of("only-bottom", task)["kept"]).toBeCloseTo(0.1, 6);
  }
  // What was frozen at two tasks is what eight tasks are merged with.
  for (const arm of ["ties", "dare", "breadcrumbs"]) {
    expect(of(arm, "t8")["alpha"]).toBe(of(arm, "t2")["alpha"]);
  }
});

it("fits a head that tells clusters apart", () => {
  const rng = new Rng(1);
  const [count, width] = [200, 6];
  const labels = Int32Array.from({ length: count }, (_, i) => i % 5);
  const features = Float32Array.from(
    { length: count * width },
    (_, i) => (i % width === labels[Math.floor(i / width)] ? 3 : 0) + 0.3 * rng.normal(),
  );
  const { weight, bias } = fitHead(features, labels, width);
  const right = labels.filter((label, n) => {
    const scores = Array.from(bias, (own, k) => {
      let sum = own;
      for (let i = 0; i < width; i++) sum += weight[k * width + i]! * features[n * width + i]!;
      return sum;
    });
    return scores.indexOf(Math.max(...scores)) === label;
  });
  expect(right.length).toBe(count);
});
