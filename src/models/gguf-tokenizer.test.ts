import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Tokenizer } from "../data/tokenizer.ts";
import type { GgufValue } from "../io/gguf.ts";
import { tokenizerOfFile } from "./gguf-tokenizer.ts";
import { metadataOfTokenizer } from "./gguf-tokenizer-write.ts";

interface Case {
  readonly addSpacePrefix: boolean;
  readonly tokens: readonly string[];
  readonly scores: readonly number[];
  readonly types: readonly number[];
  readonly bos: number;
  readonly eos: number;
  readonly unknown: number;
  readonly encoded: readonly { text: string; ids: number[]; decoded: string }[];
}

const { cases } = JSON.parse(
  readFileSync(new URL("../../test/parity/gguf-tokenizer.json", import.meta.url), "utf8"),
) as { cases: readonly Case[] };

const text = (value: string): GgufValue => ({ type: "string", value });
const id = (value: number): GgufValue => ({ type: "uint32", value });

function metadataOf(own: Case): Map<string, GgufValue> {
  return new Map<string, GgufValue>([
    ["tokenizer.ggml.model", text("llama")],
    ["tokenizer.ggml.tokens", { type: "string", value: own.tokens }],
    ["tokenizer.ggml.scores", { type: "float32", value: own.scores }],
    ["tokenizer.ggml.token_type", { type: "int32", value: own.types }],
    ["tokenizer.ggml.bos_token_id", id(own.bos)],
    ["tokenizer.ggml.eos_token_id", id(own.eos)],
    ["tokenizer.ggml.unknown_token_id", id(own.unknown)],
    ["tokenizer.ggml.add_space_prefix", { type: "bool", value: own.addSpacePrefix }],
  ]);
}

describe("a SentencePiece vocabulary of a GGUF file", () => {
  it.each(cases)("gives SentencePiece's ids (a space before the text: $addSpacePrefix)", (own) => {
    const made = tokenizerOfFile(metadataOf(own), "a.gguf")!;
    const tokenizer = new Tokenizer(made, "a.gguf");
    for (const { text: given, ids, decoded } of own.encoded) {
      expect([given, [...tokenizer.encode(given)]]).toEqual([given, ids]);
      if (!given.includes("▁")) expect(tokenizer.decode(ids)).toBe(decoded);
    }
    // SentencePiece tokenizers begin every text with their token for it, where a file does not say.
    expect([...tokenizer.encode("a", { addSpecial: true })][0]).toBe(own.bos);
    // Written and read again, it gives the same ids.
    const entries = metadataOfTokenizer(made, own.tokens.length, "a");
    const again = new Tokenizer(tokenizerOfFile(new Map(entries), "b.gguf")!, "b.gguf");
    for (const { text: given, ids } of own.encoded) {
      expect([given, [...again.encode(given)]]).toEqual([given, ids]);
    }
    expect([again.bosId, again.eosId]).toEqual([own.bos, own.eos]);
  });
});
