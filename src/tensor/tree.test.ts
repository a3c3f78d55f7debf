import { describe, expect, it } from "vitest";
import { Tensor } from "./tensor.ts";
import { flatten, mapTree, type Tree, unflatten } from "./tree.ts";

const tree = { b: [1, { weight: 2, bias: undefined }], a: 3, none: [] } as unknown as Tree<number>;

describe("flatten", () => {
  it("lists leaves with their paths in the order written", () => {
    expect(flatten(tree)).toEqual({ paths: ["b.0", "b.1.weight", "a"], leaves: [1, 2, 3] });
  });

  it("takes a leaf alone", () => {
    expect(flatten(5)).toEqual({ paths: [""], leaves: [5] });
  });

  it("takes instances of classes as leaves", () => {
    const tensor = Tensor.from([1, 2]);
    expect(flatten({ w: tensor }).leaves).toEqual([tensor]);
    const bare = Object.assign(Object.create(null), { w: tensor }) as Tree<Tensor>;
    expect(flatten(bare).paths).toEqual(["w"]);
  });

  it("stops where the caller says", () => {
    const pairs = { x: [1, 2], y: [3, 4] };
    const { paths, leaves } = flatten<unknown>(pairs, Array.isArray);
    expect(paths).toEqual(["x", "y"]);
    expect(leaves).toEqual([
      [1, 2],
      [3, 4],
    ]);
  });
});

describe("unflatten", () => {
  it("undoes flatten", () => {
    expect(unflatten(tree, flatten(tree).leaves)).toEqual(tree);
    expect(unflatten(7, [8])).toBe(8);
  });

  it("keeps an entry named __proto__", () => {
    const form = JSON.parse('{"__proto__":{"w":1}}') as Tree<number>;
    expect(Object.entries(unflatten(form, [2]) as object)).toEqual([["__proto__", { w: 2 }]]);
  });

  it("refuses too many and too few leaves", () => {
    for (const leaves of [
      [1, 2],
      [1, 2, 3, 4],
    ]) {
      expect(() => unflatten(tree, leaves)).toThrow(
        `unflatten: the form has 3 leaves, got ${leaves.length}.`,
      );
    }
  });
});

describe("mapTree", () => {
  it("keeps the form and shows each path", () => {
    expect(mapTree(tree, (leaf, path) => `${path}=${leaf}`)).toEqual({
      b: ["b.0=1", { weight: "b.1.weight=2" }],
      a: "a=3",
      none: [],
    });
  });
});
