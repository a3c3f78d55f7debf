import { expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import { madeUpBrown } from "./data/made-up-text.ts";
import {
  decodeSigns,
  drawCycle,
  drawItem,
  drawSequence,
  drawSum,
  encodeSigns,
  isSequence,
  levelOf,
  propertyOf,
  rowOf,
  skills,
  taggedRuns,
} from "./protein-tasks.ts";

const runs = taggedRuns(madeUpBrown());

it("rates strands above prolines, and helices by another rule", () => {
  expect(propertyOf("force", "VIVYVIVYVI")).toBeGreaterThan(0.6);
  expect(propertyOf("force", "PPGDPPGDPP")).toBeLessThan(0.1);
  expect(propertyOf("energy", "KAKAKLKAKA")).toBeGreaterThan(propertyOf("energy", "GDGDGDGDGD"));
});

it("uses all levels, none for more than half of the draws", () => {
  for (const property of ["force", "energy"] as const) {
    const counts = new Map<string, number>();
    const rng = new Rng(3);
    for (let i = 0; i < 1000; i++) {
      const level = levelOf(property, drawSequence(rng));
      counts.set(level, (counts.get(level) ?? 0) + 1);
    }
    expect([...counts.keys()].sort()).toEqual(["10", "30", "50", "70", "90"]);
    expect(Math.max(...counts.values())).toBeLessThan(500);
  }
});

it("writes items that are right, and puts loss on the answers", () => {
  const rng = new Rng(1);
  for (const skill of skills) {
    const item = drawItem(skill, rng, runs);
    const { ids, mask } = rowOf([item], true, 48);
    const text = decodeSigns(ids).replaceAll("\n", "");
    expect(text).toBe(`${skill}<${item.given}>[${item.answer}]`);
    expect(decodeSigns(ids.filter((_, i) => mask[i] === 1))).toBe(`${item.answer}]`);
    if (skill === "design") expect(levelOf("force", item.answer)).toBe(item.given);
  }
  expect(isSequence("ACDEFGHI")).toBe(true);
  expect(isSequence("ACDEFGHB")).toBe(false);
  const [one, two, sum] = drawSum(rng, runs);
  expect(Number(sum!.answer)).toBe(Number(one!.answer) + Number(two!.answer));
  expect(sum!.given).toBe(`${levelOf("force", one!.given)}+${levelOf("force", two!.given)}`);
  const [design, own] = drawCycle(rng, runs);
  expect(own).toEqual({ skill: "force", given: design!.answer, answer: design!.given });
  expect(() => rowOf([design!, own!], true, 12)).toThrow("row: 2 items do not fit into 12 signs.");
  expect(() => encodeSigns("ß")).toThrow('signs: "ß" is not in the alphabet.');
});
