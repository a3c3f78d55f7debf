/** Examples for fine-tuning: files of text or of prompts and completions, as tokens with loss masks. */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { decodeUtf8 } from "../host/utf8.ts";
import { isJsonObject, parseJson } from "../io/json.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** One line of a data file. */
export type RawExample =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "pair"; readonly prompt: string; readonly completion: string };

/** Token ids, and for each whether it is predicted with loss. */
export interface Example {
  readonly ids: Int32Array;
  /** 1 where the token carries loss; the first never does. */
  readonly mask: Uint8Array;
}

/** A line longer than this is not an example. */
const maxLineBytes = 2 ** 22;

/** Lines of a UTF-8 file with their numbers from 1. */
async function* readLines(
  files: Files,
  path: string,
): AsyncGenerator<{ readonly number: number; readonly text: string }> {
  let rest: Uint8Array[] = [];
  let size = 0;
  let number = 1;
  const add = (part: Uint8Array): void => {
    rest.push(part);
    size += part.length;
    if (size > maxLineBytes) {
      throw new FormatError(`${path}:${number}: the line is longer than ${maxLineBytes} bytes.`);
    }
  };
  const take = (): { readonly number: number; readonly text: string } => {
    const bytes = new Uint8Array(size);
    let at = 0;
    for (const part of rest) {
      bytes.set(part, at);
      at += part.length;
    }
    const whole = decodeUtf8(bytes, `${path}:${number}`);
    rest = [];
    size = 0;
    const text = number === 1 ? whole.replace(/^\ufeff/, "") : whole;
    return { number: number++, text: text.replace(/\r$/, "") };
  };
  for await (const bytes of files.stream(path)) {
    let start = 0;
    for (let end = bytes.indexOf(0x0a); end >= 0; end = bytes.indexOf(0x0a, start)) {
      add(bytes.subarray(start, end));
      yield take();
      start = end + 1;
    }
    add(bytes.subarray(start));
  }
  if (size > 0) yield take();
}

function parseLine(text: string, where: string): RawExample {
  const value = parseJson(new TextEncoder().encode(text), where, { maxBytes: 4 * maxLineBytes });
  if (!isJsonObject(value)) throw new FormatError(`${where}: must be an object.`);
  const { prompt, completion, text: whole } = value;
  if (typeof prompt === "string" && typeof completion === "string") {
    return { kind: "pair", prompt, completion };
  }
  if (typeof whole === "string") return { kind: "text", text: whole };
  throw new FormatError(
    `${where}: needs the strings "prompt" and "completion", or "text", got the keys ${Object.keys(value).join(", ") || "none"}.`,
  );
}

/**
 * Reads `.jsonl` (an object a line: `prompt` and `completion`, or `text`) or `.txt` (paragraphs apart
 * by blank lines).
 * @throws FormatError naming file and line.
 */
export async function readExamples(files: Files, path: string): Promise<RawExample[]> {
  const examples: RawExample[] = [];
  if (path.endsWith(".jsonl")) {
    for await (const { number, text } of readLines(files, path)) {
      if (text.trim() !== "") examples.push(parseLine(text, `${path}:${number}`));
    }
  } else if (path.endsWith(".txt")) {
    let paragraph: string[] = [];
    const flush = (): void => {
      if (paragraph.length > 0) examples.push({ kind: "text", text: paragraph.join("\n") });
      paragraph = [];
    };
    for await (const { text } of readLines(files, path)) {
      if (text.trim() === "") flush();
      else paragraph.push(text);
    }
    flush();
  } else {
    throw new OptionError(`${path}: data must be a .jsonl or a .txt file.`);
  }
  if (examples.length === 0) throw new FormatError(`${path}: holds no examples.`);
  return examples;
}

/** How a prompt stands before its completion: `{prompt}` is replaced. */
export const defaultTemplate = "{prompt}\n";

export function applyTemplate(template: string, prompt: string): string {
  if (!template.includes("{prompt}")) {
    throw new OptionError(`template ${JSON.stringify(template)} must contain {prompt}.`);
  }
  return template.replace("{prompt}", () => prompt);
}

export interface EncodeExamplesOptions {
  readonly template?: string;
  /** Longest example in tokens; longer ones are cut at the end. */
  readonly maxLength: number;
}

export interface EncodedExamples {
  readonly examples: readonly Example[];
  /** Examples that were cut. */
  readonly cut: number;
  /** Examples left out, since nothing that carries loss was left. */
  readonly empty: number;
}

/**
 * Tokens of each example with the end-of-text token after it. Of a pair only the completion and the
 * end carry loss; prompt and completion are encoded apart, so that their border is a token border.
 * @throws OptionError when no example carries loss.
 */
export function encodeExamples(
  raw: readonly RawExample[],
  tokenizer: Tokenizer,
  options: EncodeExamplesOptions,
): EncodedExamples {
  const { template = defaultTemplate, maxLength } = options;
  const end = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  const examples: Example[] = [];
  let [cut, empty] = [0, 0];
  for (const item of raw) {
    const before =
      item.kind === "pair"
        ? tokenizer.encode(applyTemplate(template, item.prompt))
        : new Int32Array(0);
    const after = tokenizer.encode(item.kind === "pair" ? item.completion : item.text);
    const whole = [...before, ...after, ...end];
    const ids = Int32Array.from(whole.slice(0, maxLength));
    if (ids.length < whole.length) cut++;
    const mask = Uint8Array.from(ids, (_, i) => (i > 0 && i >= before.length ? 1 : 0));
    if (mask.includes(1)) examples.push({ ids, mask });
    else empty++;
  }
  if (examples.length === 0) {
    throw new OptionError(
      `data: no token carries loss in any of ${raw.length} examples — are the completions empty, or maxLength ${maxLength} too short?`,
    );
  }
  return { examples, cut, empty };
}

/** Indices of batches for an epoch: near lengths together, batches in random order. */
export function epochBatches(
  lengths: readonly number[],
  batchSize: number,
  rng: Rng,
): (readonly number[])[] {
  const order = [...rng.fold("order").permutation(lengths.length)];
  const batches: (readonly number[])[] = [];
  const chunk = batchSize * 16;
  for (let start = 0; start < order.length; start += chunk) {
    const part = order.slice(start, start + chunk);
    part.sort((a, b) => lengths[a]! - lengths[b]!);
    for (let i = 0; i < part.length; i += batchSize) batches.push(part.slice(i, i + batchSize));
  }
  return [...rng.fold("batches").permutation(batches.length)].map((i) => batches[i]!);
}
