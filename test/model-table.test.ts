/** The table of docs/models.md has every architecture, and none that is farther off than is claimed. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { families } from "../src/models/families.ts";
import type { ModelNumbers } from "./support/model-numbers.ts";
import { modelTable, tableEnd, tableStart } from "./support/model-table.ts";

const text = readFileSync(new URL("../docs/models.md", import.meta.url), "utf8");
const rows = text
  .slice(text.indexOf(tableStart), text.indexOf(tableEnd))
  .split("\n")
  .filter((line) => line.includes("`") && line.startsWith("|"))
  .map((line) => line.split("|").map((cell) => cell.trim()))
  .filter(([, title]) => title !== "architecture");

const remedy = 'write it anew: "npx tsx scripts/model-table.mjs"';

test("every architecture stands in the guide's table, and nothing else does", () => {
  const named = rows.map((cells) => cells[2]!.replaceAll("`", ""));
  expect(named.toSorted(), remedy).toEqual(Object.keys(families).toSorted());
});

test("each is within 1e-4 of transformers, by at least one record", () => {
  for (const [, title, , load, , save, , records, outputs, gradients] of rows) {
    expect([load, save], title).toEqual(["yes", "yes"]);
    expect(Number(records), title).toBeGreaterThan(0);
    for (const number of [outputs, gradients]) {
      expect(Number(number), `${title}: ${number}`).toBeGreaterThan(0);
      expect(Number(number), `${title}: ${number}`).toBeLessThanOrEqual(1e-4);
    }
  }
});

test("takes the largest of an architecture's records, rounded up, and leaves out what has none", () => {
  const record = (outputs: number, gradients: number): ModelNumbers => ({
    family: "gpt2",
    kind: "causal-lm",
    isRecurrent: false,
    record: "",
    outputs,
    gradients,
  });
  const [, , ...lines] = modelTable([record(2.1e-7, 9.6e-6), record(1e-7, 1e-7)]);
  expect(lines).toEqual([
    "| GPT-2 | `gpt2` | yes | objectives, tasks | yes | with a cache | 2 | 3e-7 | 1e-5 |",
  ]);
});
