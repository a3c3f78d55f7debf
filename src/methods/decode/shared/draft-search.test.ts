import { describe, expect, it } from "vitest";
import type { DraftTree } from "../../../infer/drafter.ts";
import { Rng } from "../../../tensor/rng.ts";
import { beamDraft, explorationWeight, puct, searchDraft, TreeSearch } from "./draft-search.ts";
import { TrigramRepresentative } from "./representative.ts";

/** After 0 1: 2 with 0.7, 3 with 0.3; after 1 2: 4; after 1 3: 5; after 2 4 and 3 5: 6. */
function small(): TrigramRepresentative {
  const model = new TrigramRepresentative(8, { width: 4, maxBytes: 2 ** 16 });
  model.update(0, 1, [2, 3], [0.7, 0.3], 1);
  model.update(1, 2, [4], [1], 1);
  model.update(1, 3, [5], [1], 1);
  return model;
}

/** A table of random text. */
function large(): TrigramRepresentative {
  const rng = new Rng(3);
  const model = new TrigramRepresentative(20, { width: 8, maxBytes: 2 ** 20 });
  model.fit(Int32Array.from({ length: 4000 }, () => rng.integer(1 + rng.integer(20))));
  return model;
}

const options = {
  iterations: 60,
  depth: 5,
  nodes: 24,
  least: 0,
  exploration: 1,
  value: "joint",
} as const;

/** The tokens from the root to each node. */
function pathsOf({ tokens, parents }: DraftTree): string[] {
  const paths: string[] = [];
  tokens.forEach((token, i) => {
    const parent = parents[i]!;
    paths.push(parent < 0 ? `${token}` : `${paths[parent]} ${token}`);
  });
  return paths;
}

describe("PUCT", () => {
  it("weighs the exploration of a node's children by E(s) √N", () => {
    // E = 1.25 + log((4 + 19653) / 19652) = 1.25 + log(1.000254…) = 1.2502544
    expect(explorationWeight(4, 1)).toBeCloseTo(2 * 1.2502544, 6);
    expect(explorationWeight(4, 0.5)).toBeCloseTo(1.2502544, 6);
    expect(explorationWeight(0, 1)).toBe(0);
    // The authors' release: 32 + log(13 / 8) = 32.4855
    expect(explorationWeight(4, 1, { c1: 32, c2: 8 })).toBeCloseTo(2 * 32.485508, 5);
  });

  it("adds it to the value by prior and visits", () => {
    // 0.4 + 2.5 · 0.3 / (1 + 2)
    expect(puct(0.4, 0.3, 2, 2.5)).toBeCloseTo(0.65, 12);
  });

  it("takes the steps that the formula gives by hand", () => {
    const search = new TreeSearch(small(), [0, 1], { ...options, depth: 2 });
    // Round 1: nothing was visited, both scores are 0, the likelier token 2 is made: v = 0.7.
    search.iterate();
    expect([search.tokens, search.visits, search.values]).toEqual([
      [-1, 2],
      [1, 1],
      [0, expect.closeTo(0.7, 6)],
    ]);
    // Round 2: N = 1, weight 1.2501018. Of 2: 0.7 + 1.2501 · 0.7 / 2 = 1.1375; of 3: 0 + 1.2501 · 0.3 = 0.3750.
    // So on to 2, whose only child 4 is made: v = 0.7 · 1. Q(2) = (0.7 + 0.7) / 2.
    search.iterate();
    expect([search.tokens, search.parents, search.visits]).toEqual([
      [-1, 2, 4],
      [-1, 0, 1],
      [2, 2, 1],
    ]);
    // Round 3: N = 2, weight 1.25015 · √2 = 1.76798. Of 2: 0.7 + 1.76798 · 0.7 / 3 = 1.1125; of 3: 0.5304.
    // Down to 4 at the full depth, whose value counts again.
    search.iterate();
    expect(search.visits).toEqual([3, 3, 2]);
    // Rounds on: of 2, visited n times, 0.7 + 1.25 √n · 0.7 / (n + 1); of 3 1.25 √n · 0.3. They cross between
    // n = 6 (0.7 + 0.3062 = 1.0062; 0.9186) and n = 7 (0.7 + 0.2894 = 0.9894; 0.9922): round 8 makes 3.
    for (let round = 4; round <= 7; round++) search.iterate();
    expect(search.tokens).toEqual([-1, 2, 4]);
    search.iterate();
    expect(search.tokens).toEqual([-1, 2, 4, 3]);
    expect(search.values[3]).toBeCloseTo(0.3, 6);
  });

  it("values a path by its geometric mean where that is asked for", () => {
    const search = new TreeSearch(small(), [0, 1], { ...options, depth: 2, value: "mean" });
    search.iterate();
    search.iterate();
    // √(0.7 · 1) for the path 2 4; Q(2) = (0.7 + √0.7) / 2
    expect(search.values[2]).toBeCloseTo(Math.sqrt(0.7), 6);
    expect(search.values[1]).toBeCloseTo((0.7 + Math.sqrt(0.7)) / 2, 6);
  });
});

describe("a draft", () => {
  it("is the same for the same table, text and options", () => {
    const [a, b] = [searchDraft(large(), [3, 4], options), searchDraft(large(), [3, 4], options)];
    expect(a).toEqual(b);
    expect(a.tokens.length).toBe(24);
    expect(searchDraft(large(), [4, 3], options)).not.toEqual(a);
  });

  it("is a tree of distinct paths within depth and size, parents first", () => {
    for (const make of [
      () => searchDraft(large(), [3, 4], options),
      () => beamDraft(large(), [3, 4], options),
    ]) {
      const draft = make();
      const paths = pathsOf(draft);
      expect(paths.length).toBeLessThanOrEqual(24);
      expect(new Set(paths).size).toBe(paths.length);
      expect(draft.parents.every((parent, i) => parent < i)).toBe(true);
      const depths = paths.map((path) => path.split(" ").length);
      expect(Math.max(...depths)).toBeLessThanOrEqual(5);
      expect(Math.max(...depths)).toBeGreaterThan(1);
    }
  });

  it("keeps the most visited nodes: fewer nodes are a part of more", () => {
    const all = new Set(pathsOf(searchDraft(large(), [3, 4], { ...options, nodes: 60 })));
    const few = pathsOf(searchDraft(large(), [3, 4], { ...options, nodes: 9 }));
    expect(few.length).toBe(9);
    expect(few.filter((path) => !all.has(path))).toEqual([]);
  });

  it("is one path without exploration", () => {
    const draft = searchDraft(large(), [3, 4], { ...options, exploration: 0 });
    expect([...draft.parents]).toEqual([-1, 0, 1, 2, 3]);
  });

  it("leaves out paths that are less likely than asked", () => {
    const paths = pathsOf(searchDraft(small(), [0, 1], { ...options, depth: 2, least: 0.5 }));
    expect(paths).toEqual(["2", "2 4"]);
    expect(pathsOf(beamDraft(small(), [0, 1], { depth: 2, nodes: 8, least: 0.5 }))).toEqual(paths);
  });

  it("holds the likeliest paths of each level as a beam", () => {
    const paths = pathsOf(beamDraft(small(), [0, 1], { depth: 2, nodes: 4, least: 0 }));
    expect(paths).toEqual(["2", "3", "2 4", "3 5"]);
    const narrow = beamDraft(small(), [0, 1], { depth: 2, nodes: 2, least: 0 });
    expect(pathsOf(narrow)).toEqual(["2", "2 4"]);
  });

  it("is empty under a table without rows", () => {
    const model = new TrigramRepresentative(8, { width: 4, maxBytes: 2 ** 16 });
    expect(searchDraft(model, [0, 1], options).tokens.length).toBe(0);
    expect(beamDraft(model, [0, 1], options).tokens.length).toBe(0);
  });
});
