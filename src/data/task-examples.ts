/** Examples of tasks as a model reads them, and sets of them. */
import { OptionError } from "../errors.ts";
import { DataHash } from "./data-hash.ts";
import { checkIndex, type ExampleSet } from "./set.ts";
import type {
  LabelledText,
  LabelSet,
  PlainText,
  SentenceGroup,
  SourceTarget,
  TaggedWords,
} from "./tasks.ts";
import { type FramedText, frameText, type TextFrame } from "./text-frame.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** What texts are encoded with. */
export interface TextEncoding {
  readonly tokenizer: Tokenizer;
  readonly frame: TextFrame;
  /** Tokens of a text, or a pair, at most. */
  readonly maxLength: number;
}

/** A text and its class, number, or 0 and 1 for each class. */
export interface ClassExample extends FramedText {
  readonly target: number | Float32Array;
}

/** A text with a class for each token, -1 for those that carry no loss. */
export interface TokenClassExample extends FramedText {
  readonly labels: Int32Array<ArrayBuffer>;
  /** Words whose first token was cut off. */
  readonly lost: number;
}

/** A text whose tokens may be hidden: those of the text itself. */
export type MaskableExample = FramedText;

/** An anchor, a positive and negatives, or two texts with a score. */
export interface SentenceExample {
  readonly texts: readonly FramedText[];
  readonly score: number;
}

/** A source with what stands around it, and an answer with its end. */
export interface Seq2SeqExample {
  readonly source: Int32Array<ArrayBuffer>;
  readonly target: Int32Array<ArrayBuffer>;
  readonly isCut: boolean;
}

function framed(
  { tokenizer, frame, maxLength }: TextEncoding,
  text: string,
  pair?: string,
): FramedText {
  const second = pair === undefined ? undefined : tokenizer.encode(pair);
  return frameText(frame, tokenizer.encode(text), second, maxLength);
}

/** @throws OptionError for a label that is not in the set. */
export function encodeLabelled(
  { text, pair, label, where }: LabelledText,
  labels: LabelSet,
  encoding: TextEncoding,
): ClassExample {
  const made = framed(encoding, text, pair);
  if (labels.problem === "regression") {
    if (typeof label === "number") return { ...made, target: label };
    throw new OptionError(`${where}: the label must be a number, got ${JSON.stringify(label)}.`);
  }
  const idOf = (name: string | number): number => {
    const id = typeof name === "number" ? name : labels.names.indexOf(name);
    if (Number.isInteger(id) && id >= 0 && id < labels.names.length) return id;
    throw new OptionError(
      `${where}: the label ${JSON.stringify(name)} is not one of ${labels.names.slice(0, 20).join(", ")}.`,
    );
  };
  if (labels.problem === "single_label_classification") {
    if (typeof label === "object") {
      throw new OptionError(`${where}: has ${label.length} labels, one is needed.`);
    }
    return { ...made, target: idOf(label) };
  }
  const target = new Float32Array(labels.names.length);
  for (const name of typeof label === "object" ? label : [label]) target[idOf(name)] = 1;
  return { ...made, target };
}

/**
 * Words as tokens: only the first piece of a word carries its tag.
 * @throws OptionError for a tag that has no number.
 */
export function encodeTagged(
  { words, tags, where }: TaggedWords,
  names: readonly string[],
  encoding: TextEncoding,
): TokenClassExample {
  const pieces: number[] = [];
  const ofPieces: number[] = [];
  words.forEach((word, i) => {
    const tag = tags[i]!;
    const id = typeof tag === "number" ? tag : names.indexOf(tag);
    if (!(Number.isInteger(id) && id >= 0 && id < names.length)) {
      throw new OptionError(
        `${where}: the tag ${JSON.stringify(tag)} is not one of ${names.slice(0, 20).join(", ")}.`,
      );
    }
    // As a word of its own; after others with the space that joins them.
    const own = encoding.tokenizer.encode(i === 0 ? word : ` ${word}`);
    own.forEach((piece, j) => {
      pieces.push(piece);
      ofPieces.push(j === 0 ? id : -1);
    });
  });
  const made = frameText(encoding.frame, pieces, undefined, encoding.maxLength);
  const labels = new Int32Array(made.ids.length).fill(-1);
  labels.set(ofPieces.slice(0, made.kept), made.start);
  return { ...made, labels, lost: ofPieces.slice(made.kept).filter((id) => id >= 0).length };
}

export function encodePlain({ text }: PlainText, encoding: TextEncoding): MaskableExample {
  return framed(encoding, text);
}

export function encodeSentences(
  { texts, score }: SentenceGroup,
  encoding: TextEncoding,
  prompt = "",
): SentenceExample {
  return { texts: texts.map((text) => framed(encoding, prompt + text)), score: score ?? 1 };
}

/** @param endId ends the answer */
export function encodeSourceTarget(
  { source, target }: SourceTarget,
  endId: number,
  encoding: TextEncoding,
): Seq2SeqExample {
  const read = framed(encoding, source);
  const written = encoding.tokenizer.encode(target);
  const kept = written.subarray(0, encoding.maxLength - 1);
  return {
    source: read.ids,
    target: Int32Array.from([...kept, endId]),
    isCut: read.isCut || kept.length < written.length,
  };
}

/**
 * A set in memory of examples of any kind; it holds the list, so do not change it.
 * @param words all numbers of an example, for its length (the first list) and the hash of the data
 */
export function taskSet<E>(
  examples: readonly E[],
  words: (example: E) => {
    readonly length: number;
    readonly loss: number;
    readonly all: readonly ArrayLike<number>[];
  },
): ExampleSet<E> {
  const hash = new DataHash();
  const float = new Float32Array(1);
  const bits = new Int32Array(float.buffer);
  const lengths = new Int32Array(examples.length);
  let [tokens, lossTokens] = [0, 0];
  examples.forEach((example, i) => {
    const { length, loss, all } = words(example);
    for (const list of all) {
      hash.word(list.length);
      for (let j = 0; j < list.length; j++) {
        float[0] = list[j]!;
        hash.word(Number.isInteger(list[j]) ? list[j]! : bits[0]!);
      }
    }
    lengths[i] = length;
    tokens += length;
    lossTokens += loss;
  });
  return {
    ...{ count: examples.length, lengths, tokens, lossTokens, dataHash: hash.digest() },
    async get(indices) {
      return Array.from(indices, (index) => {
        checkIndex(index, examples.length);
        return examples[index]!;
      });
    },
    async close() {},
  };
}
