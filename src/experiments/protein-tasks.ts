/**
 * Small skills in one alphabet of letters: properties of made-up proteins by rules, proteins for a property, parts
 * of speech, addition. Values are levels of 20 %, written as 10, 30, 50, 70 or 90.
 *
 *   force<SEQ>[30]   energy<SEQ>[70]   design<30>[SEQ]   tag<the old man>[DJN]   add<30+70>[100]
 *
 * Rules, of features standardised over `reference` draws:
 *   force   σ(1.5 (0.6 strand share + 0.3 hydrophobic moment at 160° + 0.2 cysteine pairs - 0.3 prolines))
 *   energy  σ(1.5 (0.6 helix share + 0.4 charge - 0.2 glycines))
 * Strand and helix formers are those of Chou and Fasman 1978 (propensity above 1.1), hydrophobicity is the
 * consensus scale of Eisenberg 1984.
 */
import { OptionError } from "../errors.ts";
import { Rng } from "../tensor/rng.ts";
import type { BrownFile } from "./data/brown.ts";

const residues = "ACDEFGHIKLMNPQRSTVWY";
const strand = "VIYFWLCTQ";
const helix = "EMALKFQWI";
const hydrophobicity: Readonly<Record<string, number>> = {
  ...{ A: 0.62, C: 0.29, D: -0.9, E: -0.74, F: 1.19, G: 0.48, H: -0.4, I: 1.38, K: -1.5, L: 1.06 },
  ...{
    M: 0.64,
    N: -0.78,
    P: 0.12,
    Q: -0.85,
    R: -2.53,
    S: -0.18,
    T: -0.05,
    V: 1.08,
    W: 0.81,
    Y: 0.26,
  },
};

export const skills = ["force", "energy", "design", "tag", "add"] as const;
export type Skill = (typeof skills)[number];

/** Signs of all texts; the first ends a text and fills rows. */
const alphabet = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>[]+?.,;'-";
const places = new Map([...alphabet].map((sign, i) => [sign, i]));
export const signCount: number = alphabet.length;

/** Ids of a text's signs. @throws OptionError for a sign that is not among them. */
export function encodeSigns(text: string): Int32Array<ArrayBuffer> {
  return Int32Array.from(text, (sign) => {
    const id = places.get(sign);
    if (id !== undefined) return id;
    throw new OptionError(`signs: ${JSON.stringify(sign)} is not in the alphabet.`);
  });
}

export function decodeSigns(ids: ArrayLike<number>): string {
  return Array.from(ids, (id) => alphabet[id]!).join("");
}

const share = (sequence: string, some: string): number =>
  [...sequence].filter((one) => some.includes(one)).length / sequence.length;
const count = (sequence: string, some: string): number => share(sequence, some) * sequence.length;

/** |Σ h_n e^{i · 160° · n}| / N: how much one side of a strand is hydrophobic. */
function moment(sequence: string): number {
  const angle = (160 / 180) * Math.PI;
  let [x, y] = [0, 0];
  [...sequence].forEach((one, n) => {
    x += hydrophobicity[one]! * Math.cos(n * angle);
    y += hydrophobicity[one]! * Math.sin(n * angle);
  });
  return Math.hypot(x, y) / sequence.length;
}

export type Property = "force" | "energy";

const features: Readonly<
  Record<Property, readonly (readonly [weight: number, feature: (sequence: string) => number])[]>
> = {
  force: [
    [0.6, (s: string) => share(s, strand)],
    [0.3, moment],
    [0.2, (s: string) => Math.floor(count(s, "C") / 2)],
    [-0.3, (s: string) => count(s, "P")],
  ],
  energy: [
    [0.6, (s: string) => share(s, helix)],
    [0.4, (s: string) => count(s, "KR") - count(s, "DE")],
    [-0.2, (s: string) => count(s, "G")],
  ],
};

/** A sequence of 8 to 14 residues whose make-up differs from draw to draw. */
export function drawSequence(rng: Rng): string {
  const [strands, helices] = [rng.uniform(), rng.uniform()];
  return Array.from({ length: 8 + rng.integer(7) }, () => {
    const from = rng.uniform() < strands ? strand : rng.uniform() < helices ? helix : residues;
    return from[rng.integer(from.length)]!;
  }).join("");
}

/** Means and deviations of features, once and for all. */
const scales = ((): Readonly<Record<Property, readonly (readonly [number, number])[]>> => {
  const rng = new Rng(54).fold("reference");
  const drawn = Array.from({ length: 2000 }, () => drawSequence(rng));
  const of = (property: Property) =>
    features[property].map(([, feature]): readonly [number, number] => {
      const values = drawn.map(feature);
      const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
      const square = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
      return [mean, Math.sqrt(square)];
    });
  return { force: of("force"), energy: of("energy") };
})();

/** A property by its rule, in (0, 1). */
export function propertyOf(property: Property, sequence: string): number {
  const sum = features[property].reduce((total, [weight, feature], i) => {
    const [mean, deviation] = scales[property][i]!;
    return total + (weight * (feature(sequence) - mean)) / deviation;
  }, 0);
  return 1 / (1 + Math.exp(-1.5 * sum));
}

/** Its level as it is written: "10" to "90". */
export function levelOf(property: Property, sequence: string): string {
  return String(10 + 20 * Math.min(4, Math.floor(5 * propertyOf(property, sequence))));
}

/** Whether a text is a sequence as they are drawn. */
export function isSequence(text: string): boolean {
  return text.length >= 8 && text.length <= 14 && [...text].every((one) => residues.includes(one));
}

/** A word of Brown and the letter of its part of speech. */
export type TaggedWord = readonly [word: string, letter: string];

/** Runs of three short words and their parts of speech: determiner, noun, adjective, verb, preposition, other. */
export function taggedRuns(files: readonly BrownFile[]): readonly (readonly TaggedWord[])[] {
  const letter = (tag: string): string => {
    if (/^(at|dt|ap|pp\$)/.test(tag)) return "D";
    if (/^(nn|np|nr)/.test(tag)) return "N";
    if (/^jj/.test(tag)) return "J";
    if (/^(vb|be|hv|do|md)/.test(tag)) return "V";
    return /^in/.test(tag) ? "P" : "O";
  };
  const runs: TaggedWord[][] = [];
  for (const { sentences } of files) {
    for (const { words, tags } of sentences) {
      for (let at = 0; at + 3 <= words.length; at += 3) {
        const own = words.slice(at, at + 3).map((word) => word.toLowerCase());
        if (!own.every((word) => /^[a-z]{1,7}$/.test(word))) continue;
        runs.push(own.map((word, i) => [word, letter(tags[at + i]!)]));
      }
    }
  }
  return runs;
}

/** A question and its answer; the answer is what stands in brackets, with the closing one. */
export interface Item {
  readonly skill: Skill;
  /** What stands in angle brackets. */
  readonly given: string;
  readonly answer: string;
}

/** Draws an item. @param runs of `taggedRuns`, not empty */
export function drawItem(skill: Skill, rng: Rng, runs: readonly (readonly TaggedWord[])[]): Item {
  switch (skill) {
    case "add": {
      const [a, b] = [10 + 20 * rng.integer(5), 10 + 20 * rng.integer(5)];
      return { skill, given: `${a}+${b}`, answer: String(a + b) };
    }
    case "tag": {
      const run = runs[rng.integer(runs.length)]!;
      return {
        skill,
        given: run.map(([word]) => word).join(" "),
        answer: run.map(([, letter]) => letter).join(""),
      };
    }
    case "design": {
      const answer = drawSequence(rng);
      return { skill, given: levelOf("force", answer), answer };
    }
    default: {
      const given = drawSequence(rng);
      return { skill, given, answer: levelOf(skill, given) };
    }
  }
}

/** Two forces and their sum, for a text that needs two skills. */
export function drawSum(rng: Rng, runs: readonly (readonly TaggedWord[])[]): readonly Item[] {
  const [one, two] = [drawItem("force", rng, runs), drawItem("force", rng, runs)];
  const sum = String(Number(one.answer) + Number(two.answer));
  return [one, two, { skill: "add", given: `${one.answer}+${two.answer}`, answer: sum }];
}

/** A protein for a force, and the force of that protein. */
export function drawCycle(rng: Rng, runs: readonly (readonly TaggedWord[])[]): readonly Item[] {
  const design = drawItem("design", rng, runs);
  return [design, { skill: "force", given: design.answer, answer: design.given }];
}

/** The text up to the answer. @param named begins with the skill's word, else with "?" */
export function questionOf(
  { skill, given }: Pick<Item, "skill" | "given">,
  named: boolean,
): string {
  return `${named ? skill : "?"}<${given}>[`;
}

/** A row of items with loss on the answers, filled to a length. @throws OptionError where it does not fit. */
export function rowOf(
  items: readonly Item[],
  named: boolean,
  length: number,
): { readonly ids: Int32Array<ArrayBuffer>; readonly mask: Uint8Array<ArrayBuffer> } {
  const [ids, mask] = [new Int32Array(length), new Uint8Array(length)];
  // A text begins with the sign that ends the one before.
  let at = 1;
  for (const item of items) {
    const question = questionOf(item, named);
    const answer = `${item.answer}]`;
    if (at + question.length + answer.length > length) {
      throw new OptionError(`row: ${items.length} items do not fit into ${length} signs.`);
    }
    ids.set(encodeSigns(question), at);
    at += question.length;
    ids.set(encodeSigns(answer), at);
    mask.fill(1, at, at + answer.length);
    at += answer.length;
  }
  return { ids, mask };
}
