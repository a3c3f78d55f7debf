/** A corpus as one long row of tokens, and windows drawn from it by step. */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tokenizer } from "./tokenizer.ts";

/**
 * Documents of a text file: separated by lines that hold `<|endoftext|>`.
 * @throws FormatError when the file is not UTF-8.
 */
export async function* readDocuments(
  files: Files,
  path: string,
  separator = "<|endoftext|>",
): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let offset = 0;
  const decode = (bytes?: Uint8Array): string => {
    try {
      return bytes ? decoder.decode(bytes, { stream: true }) : decoder.decode();
    } catch (cause) {
      throw new FormatError(
        `${path}: not UTF-8, ${bytes ? `in the ${bytes.length} bytes from ${offset}` : "it ends inside a character"} — save the file as UTF-8 text.`,
        { path, offset },
        { cause },
      );
    }
  };
  for await (const bytes of files.stream(path)) {
    rest += decode(bytes);
    offset += bytes.length;
    const parts = rest.split(separator);
    rest = parts.pop()!;
    for (const part of parts) if (part.trim() !== "") yield part.trim();
  }
  rest += decode();
  if (rest.trim() !== "") yield rest.trim();
}

/** Tokens of all documents, each followed by the end-of-text token. */
export async function tokenizeFile(
  files: Files,
  path: string,
  tokenizer: Tokenizer,
  onProgress?: (bytes: number) => void,
): Promise<{ tokens: Int32Array<ArrayBuffer>; bytes: number }> {
  if (tokenizer.eosId === undefined) {
    throw new OptionError(`${path}: the tokenizer names no end-of-text token.`);
  }
  let tokens = new Int32Array(2 ** 20);
  let size = 0;
  let bytes = 0;
  const push = (more: ArrayLike<number>): void => {
    if (size + more.length > tokens.length) {
      const grown = new Int32Array(Math.max(tokens.length * 2, size + more.length));
      grown.set(tokens.subarray(0, size));
      tokens = grown;
    }
    tokens.set(more, size);
    size += more.length;
  };
  for await (const document of readDocuments(files, path)) {
    push(tokenizer.encode(document));
    push([tokenizer.eosId]);
    bytes += new TextEncoder().encode(document).length;
    onProgress?.(bytes);
  }
  return { tokens: tokens.slice(0, size), bytes };
}

export interface WindowOptions {
  readonly batchSize: number;
  readonly seqLen: number;
  /**
   * Share of windows that are made of short passages, each of which returns a little later: a
   * small model sees too little repetition in prose to learn to copy. Default 0.
   */
  readonly repeats?: number;
  readonly vocabSize: number;
}

/**
 * Windows of T + 1 tokens for a step, drawn by (seed, step): inputs are the first T, targets the
 * last T.
 */
export function drawWindows(
  tokens: Int32Array,
  options: WindowOptions,
  rng: Rng,
): { ids: Int32Array<ArrayBuffer>; targets: Int32Array<ArrayBuffer> } {
  const { batchSize, seqLen, repeats = 0 } = options;
  if (tokens.length < seqLen + 1) {
    throw new OptionError(
      `pretrain: the text has ${tokens.length} tokens, a window needs ${seqLen + 1} — give more text or a shorter seqLen.`,
    );
  }
  const ids = new Int32Array(batchSize * seqLen);
  const targets = new Int32Array(batchSize * seqLen);
  for (let b = 0; b < batchSize; b++) {
    const own = rng.fold(b);
    const window =
      own.uniform() < repeats
        ? repeatedWindow(tokens, seqLen + 1, options.vocabSize, own)
        : passage(tokens, seqLen + 1, own);
    ids.set(window.subarray(0, seqLen), b * seqLen);
    targets.set(window.subarray(1), b * seqLen);
  }
  return { ids, targets };
}

function passage(tokens: Int32Array, length: number, rng: Rng): Int32Array {
  const start = rng.integer(tokens.length - length + 1);
  return tokens.subarray(start, start + length);
}

/** Passages of 3 to 32 tokens, prose or random, each followed by other text and then itself. */
function repeatedWindow(
  tokens: Int32Array,
  length: number,
  vocabSize: number,
  rng: Rng,
): Int32Array {
  const window = new Int32Array(length);
  let size = 0;
  const push = (part: Int32Array): void => {
    const room = part.subarray(0, length - size);
    window.set(room, size);
    size += room.length;
  };
  while (size < length) {
    const count = 3 + rng.integer(30);
    const again =
      rng.uniform() < 0.5
        ? passage(tokens, count, rng)
        : Int32Array.from({ length: count }, () => rng.integer(vocabSize));
    push(again);
    push(passage(tokens, 1 + rng.integer(24), rng));
    push(again);
  }
  return window;
}
