/** What a tokenizer puts around a text and between two, and texts cut to fit. */
import { FormatError, OptionError } from "../errors.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Ids that stand before, between and after two texts, and whether the second has a type of its own. */
export interface TextFrame {
  readonly before: readonly number[];
  /** After a text alone. */
  readonly after: readonly number[];
  /** Between two texts, and after the second. */
  readonly between: readonly number[];
  readonly afterPair: readonly number[];
  /** Token types of a pair: of the first text with what stands before it, of what stands between, and so on. */
  readonly types: { readonly between: number; readonly second: number; readonly after: number };
}

/** A text, or two, as a model reads it. */
export interface FramedText {
  readonly ids: Int32Array<ArrayBuffer>;
  /** Token types, where a pair has any; else all are 0. */
  readonly types?: Int32Array<ArrayBuffer>;
  /** Whether something was cut off. */
  readonly isCut: boolean;
  /** Where the first text stands among the ids, and how many of its tokens were kept. */
  readonly start: number;
  readonly kept: number;
}

const alone = { between: 0, second: 0, after: 0 };

function processors(value: JsonValue | undefined): JsonObject[] {
  if (!isJsonObject(value)) return [];
  const inner = value["processors"];
  return Array.isArray(inner) ? inner.flatMap((item: JsonValue) => processors(item)) : [value];
}

/**
 * The frame that tokenizer.json describes: by a template, or as BERT and RoBERTa have it. Tokenizers of
 * other kinds put two texts one after the other.
 * @throws FormatError for a template that does not hold both texts in order.
 */
export function textFrame(tokenizer: Tokenizer, where = "tokenizer.json"): TextFrame {
  const whole = tokenizer.encode("", { addSpecial: true });
  const before = [...tokenizer.beginning];
  const after = [...whole.subarray(before.length)];
  const root = parseJson(tokenizer.json.tokenizer, where, { maxBytes: 2 ** 27 });
  for (const step of processors(isJsonObject(root) ? root["post_processor"] : undefined)) {
    if (step["type"] === "BertProcessing") {
      return {
        ...{ before, after, between: after, afterPair: after },
        types: { between: 0, second: 1, after: 1 },
      };
    }
    if (step["type"] === "RobertaProcessing") {
      return { before, after, between: [...after, ...after], afterPair: after, types: alone };
    }
    if (step["type"] === "TemplateProcessing")
      return { before, after, ...template(step, tokenizer, where) };
  }
  return { before, after, between: [], afterPair: after, types: alone };
}

function template(
  step: JsonObject,
  tokenizer: Tokenizer,
  where: string,
): Pick<TextFrame, "between" | "afterPair" | "types"> {
  const wrong = (what: string): FormatError =>
    new FormatError(`${where}: post_processor.pair must ${what}.`, { path: where });
  const pieces = step["pair"];
  if (!Array.isArray(pieces)) throw wrong("be a list");
  const parts: [number[], number[], number[]] = [[], [], []];
  const types = [0, 0, 0];
  let [at, second] = [0, 0];
  for (const piece of pieces as readonly JsonValue[]) {
    const [kind, body] = isJsonObject(piece) ? (Object.entries(piece)[0] ?? []) : [];
    const inner = isJsonObject(body) ? body : {};
    const type = inner["type_id"] === 1 ? 1 : 0;
    if (kind === "Sequence") {
      if (inner["id"] !== (at === 0 ? "A" : "B") || at > 1) throw wrong("hold A once, then B once");
      if (at === 1) second = type;
      at++;
    } else if (kind === "SpecialToken" && typeof inner["id"] === "string") {
      const id = tokenizer.tokenToId(inner["id"]);
      if (id === undefined) throw wrong(`name tokens of the vocabulary, got ${inner["id"]}`);
      parts[at]!.push(id);
      types[at] = type;
    } else throw wrong("hold sequences and special tokens");
  }
  if (at !== 2) throw wrong("hold A once, then B once");
  return {
    between: parts[1],
    afterPair: parts[2],
    types: { between: types[1]!, second, after: types[2]! },
  };
}

/**
 * A text, or a pair, as ids with what the tokenizer puts around them, at most `maxLength` in all: of two
 * texts the longer one is cut first.
 * @throws OptionError when maxLength leaves no room for a token.
 */
export function frameText(
  frame: TextFrame,
  first: ArrayLike<number>,
  second: ArrayLike<number> | undefined,
  maxLength: number,
): FramedText {
  const closing = second ? [...frame.between, ...frame.afterPair] : frame.after;
  const room = maxLength - frame.before.length - closing.length;
  if (room < (second ? 2 : 1)) {
    throw new OptionError(
      `maxLength ${maxLength} leaves no room for a text beside ${frame.before.length + closing.length} tokens around it.`,
    );
  }
  let [a, b] = [first.length, second?.length ?? 0];
  if (a + b > room) {
    // Cut the longer one down to the other, then both by turns; an odd token stays with the first.
    const half = Math.ceil(room / 2);
    if (Math.min(a, b) <= Math.floor(room / 2)) {
      if (a >= b) a = room - b;
      else b = room - a;
    } else [a, b] = [half, room - half];
  }
  const isCut = a < first.length || b < (second?.length ?? 0);
  const ids = [
    ...frame.before,
    ...Array.from(first).slice(0, a),
    ...(second
      ? [...frame.between, ...Array.from(second).slice(0, b), ...frame.afterPair]
      : frame.after),
  ];
  const start = frame.before.length;
  const made = { ids: Int32Array.from(ids), isCut, start, kept: a };
  if (!second || Object.values(frame.types).every((type) => type === 0)) return made;
  const { between, second: ofSecond, after } = frame.types;
  const types = new Int32Array(ids.length);
  const from = start + a;
  types.fill(between, from, from + frame.between.length);
  types.fill(ofSecond, from + frame.between.length, from + frame.between.length + b);
  types.fill(after, from + frame.between.length + b);
  return { ...made, types };
}
