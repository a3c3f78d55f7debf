import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { optimizerByName, optimizerNames } from "./by-name.ts";

describe("an optimiser by its name", () => {
  it("is made for every name, and carries it", () => {
    for (const name of optimizerNames) expect(optimizerByName(name).name).toBe(name);
    expect(optimizerByName("sgd", { momentum: 0.9 }).slots([2])).toEqual({ momentum_buffer: [2] });
  });

  it("is refused with the nearest name and the list", () => {
    const list = "optimizers are adam, adamw, sgd, lion, adafactor, muon.";
    expect(() => optimizerByName("AdamW")).toThrow(
      new OptionError(`unknown optimizer "AdamW" — did you mean "adamw"? ${list}`),
    );
    expect(() => optimizerByName("adafacter")).toThrow('did you mean "adafactor"?');
    expect(() => optimizerByName("shampoo")).toThrow(`unknown optimizer "shampoo" — ${list}`);
    expect(() => optimizerByName("constructor")).toThrow('unknown optimizer "constructor"');
  });

  it("is refused with an option that it does not have", () => {
    expect(() => optimizerByName("lion", { momentum: 0.9 } as never)).toThrow(
      'lion: unknown option "momentum" — its options are beta1, beta2, weightDecay.',
    );
    expect(optimizerByName("lion", { beta1: undefined } as never).name).toBe("lion");
  });
});
