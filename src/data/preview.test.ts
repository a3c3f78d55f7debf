import fc from "fast-check";
import { describe, expect, it } from "vitest";
import parity from "../../test/parity/chat.json" with { type: "json" };
import { previewExample } from "./preview.ts";
import { Tokenizer } from "./tokenizer.ts";

const tokenizers = [
  ["bytes", '{"eos_token":"<|im_end|>"}'],
  ["pieces", '{"eos_token":"</s>"}'],
] as const;

describe.each(tokenizers)("previewExample with %s", (name, config) => {
  const tokenizer = new Tokenizer(
    { tokenizer: JSON.stringify(parity.tokenizers[name]), config },
    name,
  );

  it("shows the whole text, each token's part, and what carries loss", () => {
    const end = tokenizer.eosId!;
    const ids = Int32Array.from([...tokenizer.encode("What is größe 🙂?"), end]);
    const mask = Uint8Array.from(ids, (_, i) => (i >= ids.length - 2 ? 1 : 0));
    const { tokens, lossCount } = previewExample({ ids, mask }, tokenizer);
    expect(tokens).toHaveLength(ids.length);
    expect(tokens.map(({ text }) => text).join("")).toBe(tokenizer.decode(ids));
    expect(tokens.at(-1)).toEqual({ text: tokenizer.decode([end]), hasLoss: true });
    expect(tokens.at(-2)).toEqual({ text: "?", hasLoss: true });
    expect(tokens.filter(({ hasLoss }) => hasLoss)).toHaveLength(2);
    expect(lossCount).toBe(2);
    // ö and ß take two tokens of bytes, the smile four: 1 + 1 + 3 show nothing.
    expect(tokens.filter(({ text }) => text === "")).toHaveLength(5);
  });

  it("loses nothing of any text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", minLength: 1, maxLength: 40 }), (text) => {
        const ids = tokenizer.encode(text);
        const { tokens } = previewExample({ ids, mask: new Uint8Array(ids.length) }, tokenizer);
        expect(tokens.map((token) => token.text).join("")).toBe(tokenizer.decode(ids));
      }),
      { seed: 11, numRuns: 200 },
    );
  });
});
