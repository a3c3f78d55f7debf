import { expect, it } from "vitest";
import { phaseLengths } from "./lottery.ts";

it("divides steps into phases", () => {
  expect(phaseLengths(10, 1, 0.5)).toEqual([5, 5]);
  expect(phaseLengths(13, 1, 3 / 13)).toEqual([3, 10]);
  expect(phaseLengths(11, 2, 0.5)).toEqual([3, 2, 3, 3]);
  expect(phaseLengths(2, 1, 0.01)).toEqual([1, 1]);
  expect(() => phaseLengths(3, 2, 0.5)).toThrow(
    "lt-sft: 3 steps are too few for 2 rounds of a full and a sparse phase — make at least 4.",
  );
});
