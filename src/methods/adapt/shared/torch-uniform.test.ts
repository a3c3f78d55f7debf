import { expect, it } from "vitest";
import { fixture, type RawTensor, tensorOf } from "../../../../test/support/fixture.ts";
import { torchUniform } from "./torch-uniform.ts";

it("draws the numbers of PyTorch's generator, one tensor after another", () => {
  const { random } = fixture<{
    readonly random: Readonly<Record<"first" | "last" | "second", RawTensor>> & {
      readonly seed: number;
    };
  }>("peft-kinds");
  const draw = torchUniform(random.seed);
  // More than one block of 624.
  const first = draw(700, 0.25);
  expect(first.slice(0, 8)).toEqual(tensorOf(random.first).data);
  expect(first.slice(-8)).toEqual(tensorOf(random.last).data);
  expect(draw(8, 1.5)).toEqual(tensorOf(random.second).data);
});
