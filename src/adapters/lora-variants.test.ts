import { expect, it } from "vitest";
import { tinyBase, tinyModel } from "../../test/support/objective.ts";
import { firstNumbers } from "../methods/initialise.ts";
import { Rng } from "../tensor/rng.ts";
import { traineeOf } from "../train/trainee.ts";
import { weightsScene } from "./adapter.ts";
import { lora } from "./lora.ts";

it.each([
  ["a magnitude", { useDora: true }],
  ["trained tokens", { trainableTokens: [3] }],
])("does not train %s from numbers that the base did not give", async (_, options) => {
  const adapter = lora(tinyModel, { rank: 2, targetModules: ["c_attn"], ...options });
  const bare = { adapter, params: adapter.init(new Rng(0)) };
  expect(() => traineeOf(tinyModel, tinyBase, bare)).toThrow(
    /has no numbers yet, weights or data must give them — begin with those of firstNumbers/,
  );
  const numbers = await firstNumbers(adapter, weightsScene(tinyModel, tinyBase, new Rng(0)));
  expect(() => traineeOf(tinyModel, tinyBase, { adapter, ...numbers })).not.toThrow();
});
