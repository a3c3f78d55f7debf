/** What a model is trained on, token by token. */
import type { Example } from "./example.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface PreviewToken {
  /** Its part of the text; empty where it ends inside a character, which the next completes. */
  readonly text: string;
  readonly hasLoss: boolean;
}

export interface Preview {
  readonly tokens: readonly PreviewToken[];
  /** Tokens that carry loss. */
  readonly lossCount: number;
}

/** Tokens before one that decide how it is shown: a space, a character of several tokens. */
const context = 8;

/** Each token's text and whether it carries loss; special tokens show as they are written. */
export function previewExample(example: Example, tokenizer: Tokenizer): Preview {
  const { ids, mask } = example;
  const tokens: PreviewToken[] = [];
  let lossCount = 0;
  // Where the last whole character ends: tokens from there on make the next one.
  let whole = 0;
  for (let i = 0; i < ids.length; i++) {
    const from = Math.max(0, whole - context);
    const before = tokenizer.decode(ids.subarray(from, whole));
    const now = tokenizer.decode(ids.subarray(from, i + 1));
    const isOpen = now.endsWith("\ufffd") && i + 1 < ids.length && i - whole < context;
    const hasLoss = mask[i] === 1;
    if (hasLoss) lossCount++;
    tokens.push({ text: isOpen ? "" : now.slice(before.length), hasLoss });
    if (!isOpen) whole = i + 1;
  }
  return { tokens, lossCount };
}
