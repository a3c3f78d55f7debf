import { describe, expect, it } from "vitest";
import { OptionError } from "../../errors.ts";
import { Arena, arenaLimit } from "./arena.ts";

describe("arena", () => {
  it("gives zeroed tensors that start on cache lines and do not overlap", () => {
    const arena = new Arena(3 * 64);
    const [a, b] = [arena.allocate([3], "float32"), arena.allocate([2, 2], "float32")];
    expect([a.data.byteOffset, b.data.byteOffset]).toEqual([0, 64]);
    a.data.fill(7);
    expect([...b.data]).toEqual([0, 0, 0, 0]);
    expect(b.shape).toEqual([2, 2]);
  });

  it("takes room in whole cache lines, and none for an empty tensor", () => {
    expect(Arena.room([16], "float32")).toBe(64);
    expect(Arena.room([17], "float32")).toBe(128);
    expect(Arena.room([], "float32")).toBe(64);
    expect(Arena.room([0, 5], "float32")).toBe(0);
    expect(Arena.room([9], "float64")).toBe(128);
    expect(new Arena(0).allocate([0], "float32").size).toBe(0);
  });

  it("knows its own tensors, under any shape, and no parts or others", () => {
    const arena = new Arena(128);
    const tensor = arena.allocate([4], "float32");
    expect(arena.owns(tensor.reshape([2, 2]).data)).toBe(true);
    expect(arena.owns(tensor.data.subarray(1))).toBe(false);
    expect(new Arena(64).owns(tensor.data)).toBe(false);
  });

  it("refuses more than one memory addresses, and sizes that are no number", () => {
    expect(() => new Arena(arenaLimit + 1)).toThrow(
      new OptionError(
        `arena: needs 0 to ${arenaLimit} bytes, got ${arenaLimit + 1} — use several.`,
      ),
    );
    expect(() => new Arena(Number.NaN)).toThrow("got NaN");
    expect(() => new Arena(-1)).toThrow(OptionError);
  });

  it("refuses a tensor that does not fit what is left", () => {
    const arena = new Arena(65536);
    arena.allocate([16000], "float32");
    expect(() => arena.allocate([400], "float32")).toThrow(
      "arena: 1600 more bytes do not fit 65536, 64000 are used.",
    );
    expect(arena.allocate([384], "float32").size).toBe(384);
  });
});
