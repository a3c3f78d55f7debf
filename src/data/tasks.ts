/**
 * Records of tasks other than the next token: texts with labels, words with tags, sentences that belong
 * together, a text and what it becomes. Files are of the formats of `readRecords`.
 */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { JsonObject, JsonValue } from "../io/json.ts";
import { type ReadOptions, readRecords } from "./formats.ts";
import { type LocatedRecord, shownKeys } from "./records.ts";

/** How a file of a task is read; columns may be mapped to the fields that the task reads. */
export type ReadTaskOptions = Pick<ReadOptions, "format" | "map">;

interface Located {
  /** Where it was read, `file:line`; begins errors about it. */
  readonly where: string;
}

/** A label as it is written: a name, a number, or several names. */
export type RawLabel = string | number | readonly string[];

/** A text, or two, and its label. */
export interface LabelledText extends Located {
  readonly text: string;
  readonly pair?: string;
  readonly label: RawLabel;
}

/** Words with a tag each: names, or numbers of a list that is given. */
export interface TaggedWords extends Located {
  readonly words: readonly string[];
  readonly tags: readonly (string | number)[];
}

/** Sentences that belong together: an anchor, a positive, and any negatives; or two with a score. */
export interface SentenceGroup extends Located {
  readonly texts: readonly string[];
  /** How near the two are, or 1 and 0 for a pair that belongs together or does not. */
  readonly score?: number;
}

/** A text and what it becomes. */
export interface SourceTarget extends Located {
  readonly source: string;
  readonly target: string;
}

/** A text alone. */
export interface PlainText extends Located {
  readonly text: string;
}

/** Fields that each kind of record reads, for mapping and help. */
export const taskFields: {
  readonly labelled: readonly string[];
  readonly tagged: readonly string[];
  readonly sentences: readonly string[];
  readonly sourceTarget: readonly string[];
  readonly plain: readonly string[];
} = {
  labelled: ["text", "pair", "premise", "hypothesis", "sentence1", "sentence2", "label"],
  tagged: ["tokens", "words", "tags", "ner_tags", "labels", "text"],
  sentences: [
    ...["anchor", "query", "positive", "negative", "sentence1", "sentence2"],
    ...["premise", "hypothesis", "score", "label"],
  ],
  sourceTarget: ["source", "target", "prompt", "completion", "document", "summary"],
  plain: ["text"],
};

const maxWords = 2 ** 16;
const maxNegatives = 64;

function fail({ where }: LocatedRecord, what: string): FormatError {
  return new FormatError(`${where}: ${what}.`, { path: where });
}

/** The first of the fields that a record has. */
function first(record: JsonObject, names: readonly string[]): JsonValue | undefined {
  for (const name of names) {
    const value = Object.hasOwn(record, name) ? record[name] : undefined;
    if (value !== undefined && value !== null) return value;
  }
  return undefined;
}

function textOf(found: LocatedRecord, names: readonly string[]): string {
  const value = first(found.record, names);
  if (typeof value === "string") return value;
  throw fail(
    found,
    `needs a text in ${names.map((name) => `"${name}"`).join(" or ")}, it has ${shownKeys(found.record)}`,
  );
}

function labelOf(found: LocatedRecord): RawLabel {
  const value = first(found.record, ["label"]);
  if (typeof value === "string" && value !== "") return value;
  if (typeof value === "number" && Number.isFinite(value)) return value;
  if (typeof value === "boolean") return value ? "true" : "false";
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) {
    return value as readonly string[];
  }
  throw fail(
    found,
    `needs a "label": a name, a number or a list of names, got ${JSON.stringify(value ?? null).slice(0, 40)}`,
  );
}

/** `text` with `pair`, or a premise and a hypothesis, or two sentences; and `label`. */
export function toLabelledText(found: LocatedRecord): LabelledText {
  const pair = first(found.record, ["pair", "hypothesis", "sentence2"]);
  const text = textOf(found, ["text", "premise", "sentence1"]);
  if (pair !== undefined && typeof pair !== "string") throw fail(found, "its second text is none");
  return { text, ...(pair !== undefined && { pair }), label: labelOf(found), where: found.where };
}

/** `tokens` and `tags`; or lines of a word and its tag last, as CoNLL has them, in `text`. */
export function toTaggedWords(found: LocatedRecord): TaggedWords {
  const words = first(found.record, ["tokens", "words"]);
  if (words === undefined && typeof found.record["text"] === "string") {
    const lines = found.record["text"].split("\n").filter((line) => line.trim() !== "");
    const parts = lines.map((line) => line.trim().split(/\s+/));
    const odd = parts.findIndex((part) => part.length < 2);
    if (odd >= 0) throw fail(found, `line ${odd + 1} must be a word and its tag`);
    const kept = parts.filter(([word]) => word !== "-DOCSTART-");
    return {
      words: kept.map(([word]) => word!),
      tags: kept.map((part) => part.at(-1)!),
      where: found.where,
    };
  }
  const tags = first(found.record, ["tags", "ner_tags", "labels"]);
  if (!Array.isArray(words) || !words.every((word) => typeof word === "string")) {
    throw fail(found, `needs a list of words in "tokens", it has ${shownKeys(found.record)}`);
  }
  const isTag = (tag: JsonValue): boolean =>
    (typeof tag === "string" && tag !== "") || (Number.isInteger(tag) && (tag as number) >= 0);
  if (!Array.isArray(tags) || !tags.every(isTag)) {
    throw fail(found, 'needs a list of names or numbers from 0 in "tags"');
  }
  if (words.length !== tags.length || words.length > maxWords) {
    throw fail(
      found,
      `needs a tag for each of at most ${maxWords} words, got ${tags.length} for ${words.length}`,
    );
  }
  return {
    words: words as readonly string[],
    tags: tags as readonly (string | number)[],
    where: found.where,
  };
}

/** An anchor, a positive and negatives (one, or a list); or two sentences with a score. */
export function toSentenceGroup(found: LocatedRecord): SentenceGroup {
  const anchor = textOf(found, ["anchor", "query", "sentence1", "premise"]);
  const other = textOf(found, ["positive", "sentence2", "hypothesis"]);
  const negative = first(found.record, ["negative"]);
  const negatives = negative === undefined ? [] : Array.isArray(negative) ? negative : [negative];
  if (!negatives.every((text) => typeof text === "string") || negatives.length > maxNegatives) {
    throw fail(found, `"negative" must be a text or a list of at most ${maxNegatives} texts`);
  }
  const score = first(found.record, ["score", "label"]);
  if (score !== undefined && !(typeof score === "number" && Number.isFinite(score))) {
    throw fail(found, `"score" must be a number, got ${JSON.stringify(score).slice(0, 40)}`);
  }
  return {
    texts: [anchor, other, ...(negatives as readonly string[])],
    ...(score !== undefined && { score: score as number }),
    where: found.where,
  };
}

export function toSourceTarget(found: LocatedRecord): SourceTarget {
  return {
    source: textOf(found, ["source", "prompt", "document"]),
    target: textOf(found, ["target", "completion", "summary"]),
    where: found.where,
  };
}

export function toPlainText(found: LocatedRecord): PlainText {
  return { text: textOf(found, ["text"]), where: found.where };
}

/**
 * All records of a file as one kind.
 * @param fields that the kind reads: one of `taskFields`
 * @throws FormatError naming file and line; also when the file holds none.
 * @throws OptionError when a column is mapped to a field that the kind does not read.
 */
export async function readTask<T>(
  files: Files,
  path: string,
  fields: readonly string[],
  make: (found: LocatedRecord) => T,
  options: ReadTaskOptions = {},
): Promise<T[]> {
  for (const field of Object.values(options.map ?? {})) {
    if (fields.includes(field)) continue;
    throw new OptionError(
      `map: ${JSON.stringify(field)} is no field of this task — fields are ${fields.join(", ")}.`,
      { field },
    );
  }
  const made: T[] = [];
  for await (const found of readRecords(files, path, { ...options, fields }))
    made.push(make(found));
  if (made.length === 0) throw new FormatError(`${path}: holds no examples.`, { path });
  return made;
}

/** What labels of texts mean, and their names in the order of their numbers. */
export interface LabelSet {
  readonly problem: "single_label_classification" | "multi_label_classification" | "regression";
  readonly names: readonly string[];
}

/** Classes of one data set. */
const maxClasses = 65536;

/**
 * The labels that are found: names in alphabetical order; whole numbers from 0 as classes of their own;
 * other numbers as a quantity; lists as several labels of one text.
 * @param given names in the order of the numbers, in place of those found
 * @throws OptionError when kinds are mixed, or a number has no name among those given.
 */
export function labelSet(
  examples: readonly { readonly label: RawLabel; readonly where: string }[],
  given?: readonly string[],
): LabelSet {
  const kinds = new Set(
    examples.map(({ label }) => (Array.isArray(label) ? "list" : typeof label)),
  );
  if (kinds.size !== 1) {
    throw new OptionError(`labels: must all be of one kind, got ${[...kinds].join(" and ")}.`);
  }
  const [kind] = kinds;
  if (kind === "number") {
    const numbers = examples.map(({ label }) => label as number);
    const isClass = numbers.every((value) => Number.isInteger(value) && value >= 0);
    if (!isClass) {
      if (given) throw new OptionError("labels: numbers that are no classes have no names.");
      return { problem: "regression", names: ["LABEL_0"] };
    }
    const count = numbers.reduce((most, value) => Math.max(most, value), 0) + 1;
    if (count > (given?.length ?? maxClasses)) {
      throw new OptionError(
        `labels: the number ${count - 1} is beyond the ${given?.length ?? maxClasses} classes there can be.`,
      );
    }
    const names = given ?? Array.from({ length: Math.max(2, count) }, (_, i) => `LABEL_${i}`);
    return { problem: "single_label_classification", names };
  }
  const found = new Set(examples.flatMap(({ label }) => label as string | readonly string[]));
  const unknown = given && [...found].find((name) => !given.includes(name));
  if (unknown !== undefined) {
    throw new OptionError(`labels: ${JSON.stringify(unknown)} is not among ${given!.join(", ")}.`);
  }
  const names = given ?? [...found].sort();
  if (names.length > maxClasses) {
    throw new OptionError(`labels: at most ${maxClasses} are supported, got ${names.length}.`);
  }
  return {
    problem: kind === "list" ? "multi_label_classification" : "single_label_classification",
    names,
  };
}

/**
 * Names of tags in the order of their numbers: "O" first, then by kind, B before I.
 * @throws OptionError as `labelSet`.
 */
export function tagNames(
  examples: readonly TaggedWords[],
  given?: readonly string[],
): readonly string[] {
  const all = examples.flatMap(({ tags, where }) => tags.map((label) => ({ label, where })));
  const { names } = labelSet(all, given);
  if (given || typeof all[0]?.label === "number") return names;
  const key = (name: string): string => (name === "O" ? "" : `${name.slice(2)}\u0000${name}`);
  return [...names].sort((a, b) => (key(a) < key(b) ? -1 : 1));
}
