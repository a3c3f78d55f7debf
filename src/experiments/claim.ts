/**
 * The claim file, `reproduce/<id>/claim.json`: what is claimed, and by which rule a verdict follows from
 * numbers. It is written before the first run; results record its SHA-256.
 */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { sha256Hex } from "./cells.ts";

export type Direction = "higher" | "lower";

/**
 * When a mean difference counts as more than noise. Differences are one per pair, positive where the left arm
 * is better.
 */
export type PairTest =
  /** One-sided paired t test: p below this; default 0.05. */
  | { readonly kind: "pairedT"; readonly p?: number }
  /** The lower end of the percentile bootstrap interval is above 0; default level 0.95. */
  | { readonly kind: "bootstrap"; readonly level?: number }
  /** The mean is above k standard errors. */
  | { readonly kind: "standardErrors"; readonly k: number }
  /** The difference is above 0 in at least n pairs. */
  | { readonly kind: "seeds"; readonly n: number }
  /** The mean alone decides. */
  | { readonly kind: "none" };

/** Left is better than right: by `atLeast` in the mean, and beyond noise by `test`. */
export interface Comparison {
  readonly left: string;
  readonly right: string;
  readonly metric: string;
  /** What is read of the right arm; default `metric`. */
  readonly rightMetric?: string;
  readonly direction: Direction;
  /** Least mean difference; may be negative: "not worse by more than". */
  readonly atLeast: number;
  /** Differences are divided by the size of the right arm's value. */
  readonly relative: boolean;
  readonly test: PairTest;
  /** What makes a pair: a seed (means over its tasks), or each seed and task apart. */
  readonly pairs: "seed" | "cell";
  /** Tasks that count; default all. */
  readonly tasks?: readonly string[];
}

/** An arm's mean lies between two bounds: for headroom, and for what must be equal by construction. */
export interface Level {
  readonly arm: string;
  readonly metric: string;
  readonly atLeast?: number;
  readonly atMost?: number;
  readonly tasks?: readonly string[];
}

export type Rule =
  | Comparison
  | Level
  | { readonly all: readonly Rule[] }
  | { readonly any: readonly Rule[] }
  | { readonly not: Rule };

/** A sentence, and the rules that stand for it. */
export interface Stated {
  readonly says: string;
  readonly rules: readonly Rule[];
}

export interface Claim {
  readonly id: string;
  /** The paper's claim, in a sentence. */
  readonly claim: string;
  /** The claim holds when all of these pass. */
  readonly predicted: Stated;
  /** The metric, direction, least effect and test of comparisons that name none. */
  readonly metric: string;
  readonly direction: Direction;
  readonly minimumEffect: number;
  readonly test: PairTest;
  /** The claim does not hold when one of these passes. */
  readonly falsifier: Stated;
  /** Without all of these the experiment could not have told, and the verdict is "undecided". */
  readonly headroom: Stated;
  /** Verdict seeds: 3 to 64. */
  readonly seeds: readonly number[];
  /** Other seeds, on which settings are chosen. */
  readonly tuningSeeds: readonly number[];
  /** What a full run may take: at most 60 minutes on two cores. */
  readonly budget: { readonly minutes: number; readonly says?: string };
}

const maxRules = 64;
const maxDepth = 4;

/** Reads fields of one object strictly: each is asked for once, and none may be left. */
class Fields {
  readonly #left: Map<string, JsonValue>;
  readonly #where: string;

  constructor(value: JsonValue | undefined, where: string) {
    if (!isJsonObject(value)) throw new FormatError(`${where}: must be an object.`);
    this.#left = new Map(Object.entries(value as JsonObject));
    this.#where = where;
  }

  has(name: string): boolean {
    return this.#left.has(name);
  }

  take(name: string): JsonValue | undefined {
    const value = this.#left.get(name);
    this.#left.delete(name);
    return value;
  }

  wrong(name: string, must: string, value: JsonValue | undefined): FormatError {
    return new FormatError(
      `${this.#where}: "${name}" must be ${must}, got ${value === undefined ? "nothing" : JSON.stringify(value)}.`,
    );
  }

  text(name: string, fallback?: string): string {
    const value = this.take(name) ?? fallback;
    if (typeof value === "string" && value.trim() !== "" && value.length <= 4000) return value;
    throw this.wrong(name, "a text of 1 to 4000 characters", value);
  }

  word<T extends string>(name: string, words: readonly T[], fallback?: T): T {
    const value = this.take(name) ?? fallback;
    if (words.includes(value as T)) return value as T;
    throw this.wrong(name, words.join(" or "), value);
  }

  number(name: string, low: number, high: number, fallback?: number): number {
    const value = this.take(name) ?? fallback;
    if (typeof value === "number" && value >= low && value <= high) return value;
    throw this.wrong(name, `a number from ${low} to ${high}`, value);
  }

  flag(name: string): boolean {
    const value = this.take(name) ?? false;
    if (typeof value === "boolean") return value;
    throw this.wrong(name, "true or false", value);
  }

  list(name: string, least: number, most: number): readonly JsonValue[] {
    const value = this.take(name);
    if (Array.isArray(value) && value.length >= least && value.length <= most) return value;
    throw this.wrong(name, `a list of ${least} to ${most}`, value);
  }

  words(name: string): readonly string[] | undefined {
    if (!this.has(name)) return undefined;
    return this.list(name, 1, 64).map((value) => {
      if (typeof value === "string" && value !== "") return value;
      throw this.wrong(name, "a list of names", value);
    });
  }

  end(): void {
    const [name] = this.#left.keys();
    if (name !== undefined) throw new FormatError(`${this.#where}: does not know "${name}".`);
  }
}

function readTest(value: JsonValue | undefined, where: string): PairTest {
  const fields = new Fields(value, where);
  const kind = fields.word("kind", ["pairedT", "bootstrap", "standardErrors", "seeds", "none"]);
  const test = ((): PairTest => {
    switch (kind) {
      case "pairedT":
        return { kind, p: fields.number("p", 1e-6, 0.5, 0.05) };
      case "bootstrap":
        return { kind, level: fields.number("level", 0.5, 0.9999, 0.95) };
      case "standardErrors":
        return { kind, k: fields.number("k", 0, 100) };
      case "seeds": {
        const n = fields.number("n", 1, 4096);
        if (!Number.isInteger(n)) throw fields.wrong("n", "a whole number", n);
        return { kind, n };
      }
      case "none":
        return { kind };
    }
  })();
  fields.end();
  return test;
}

type Defaults = Pick<Claim, "metric" | "direction" | "minimumEffect" | "test">;

function readRule(value: JsonValue, where: string, defaults: Defaults, depth: number): Rule {
  if (depth > maxDepth) {
    throw new FormatError(`${where}: rules stand inside each other more than ${maxDepth} deep.`);
  }
  const fields = new Fields(value, where);
  const read = (rule: JsonValue, place: string): Rule =>
    readRule(rule, `${where}.${place}`, defaults, depth + 1);
  const rule = ((): Rule => {
    for (const kind of ["all", "any"] as const) {
      if (!fields.has(kind)) continue;
      const rules = fields.list(kind, 1, maxRules).map((one, i) => read(one, `${kind}[${i}]`));
      return kind === "all" ? { all: rules } : { any: rules };
    }
    if (fields.has("not")) return { not: read(fields.take("not")!, "not") };
    const tasks = fields.words("tasks");
    const some = tasks && { tasks };
    if (fields.has("arm")) {
      const arm = fields.text("arm");
      const metric = fields.text("metric", defaults.metric);
      const bounds = {
        ...(fields.has("atLeast") && { atLeast: fields.number("atLeast", -1e12, 1e12) }),
        ...(fields.has("atMost") && { atMost: fields.number("atMost", -1e12, 1e12) }),
      };
      if (Object.keys(bounds).length === 0) {
        throw new FormatError(`${where}: a level needs "atLeast", "atMost" or both.`);
      }
      return { arm, metric, ...bounds, ...some };
    }
    const comparison: Comparison = {
      left: fields.text("left"),
      right: fields.text("right"),
      metric: fields.text("metric", defaults.metric),
      ...(fields.has("rightMetric") && { rightMetric: fields.text("rightMetric") }),
      direction: fields.word("direction", ["higher", "lower"], defaults.direction),
      atLeast: fields.number("atLeast", -1e12, 1e12, defaults.minimumEffect),
      relative: fields.flag("relative"),
      test: fields.has("test") ? readTest(fields.take("test"), `${where}.test`) : defaults.test,
      pairs: fields.word("pairs", ["seed", "cell"], "seed"),
      ...some,
    };
    if (comparison.left === comparison.right && comparison.rightMetric === undefined) {
      throw new FormatError(`${where}: compares "${comparison.left}" with itself.`);
    }
    return comparison;
  })();
  fields.end();
  return rule;
}

function readStated(
  value: JsonValue | undefined,
  where: string,
  defaults: Defaults,
  least: number,
): Stated {
  const fields = new Fields(value, where);
  const says = fields.text("says");
  const rules = fields
    .list("rules", least, maxRules)
    .map((rule, i) => readRule(rule, `${where}.rules[${i}]`, defaults, 1));
  fields.end();
  return { says, rules };
}

function readSeeds(fields: Fields, name: string, least: number): readonly number[] {
  const seeds = fields.list(name, least, 64).map((seed) => {
    if (typeof seed === "number" && Number.isInteger(seed) && seed >= 0 && seed < 2 ** 31)
      return seed;
    throw fields.wrong(name, "whole numbers from 0 below 2^31", seed);
  });
  if (new Set(seeds).size < seeds.length) throw fields.wrong(name, "different numbers", [...seeds]);
  return seeds;
}

/**
 * Reads a claim file strictly: unknown fields, rules without arms and seeds that serve both purposes are
 * refused.
 * @throws FormatError saying which field is wrong.
 */
export function parseClaim(bytes: Uint8Array, path: string): Claim {
  const fields = new Fields(parseJson(bytes, path, { maxBytes: 2 ** 20 }), path);
  const id = fields.text("id");
  const claim = fields.text("claim");
  const defaults: Defaults = {
    metric: fields.text("metric"),
    direction: fields.word("direction", ["higher", "lower"]),
    minimumEffect: fields.number("minimumEffect", 0, 1e12),
    test: readTest(fields.take("test"), `${path}: test`),
  };
  const predicted = readStated(fields.take("predicted"), `${path}: predicted`, defaults, 1);
  const falsifier = readStated(fields.take("falsifier"), `${path}: falsifier`, defaults, 1);
  const headroom = readStated(fields.take("headroom"), `${path}: headroom`, defaults, 1);
  const seeds = readSeeds(fields, "seeds", 3);
  const tuningSeeds = readSeeds(fields, "tuningSeeds", 0);
  const both = tuningSeeds.find((seed) => seeds.includes(seed));
  if (both !== undefined) {
    throw new FormatError(
      `${path}: seed ${both} is both for tuning and for the verdict — keep them apart.`,
    );
  }
  const limits = new Fields(fields.take("budget"), `${path}: budget`);
  const budget = {
    minutes: limits.number("minutes", 0.1, 60),
    ...(limits.has("says") && { says: limits.text("says") }),
  };
  limits.end();
  fields.end();
  return { id, claim, ...defaults, predicted, falsifier, headroom, seeds, tuningSeeds, budget };
}

/** A claim file and its hash. */
export async function readClaim(
  files: Files,
  path: string,
): Promise<{ readonly claim: Claim; readonly sha256: string }> {
  const bytes = await files.readBytes(path, 2 ** 20);
  return { claim: parseClaim(bytes, path), sha256: sha256Hex(bytes) };
}

/** All comparisons and levels of rules, in order. */
export function leaves(rules: readonly Rule[]): readonly (Comparison | Level)[] {
  return rules.flatMap((rule): readonly (Comparison | Level)[] => {
    if ("all" in rule) return leaves(rule.all);
    if ("any" in rule) return leaves(rule.any);
    return "not" in rule ? leaves([rule.not]) : [rule];
  });
}

/**
 * Whether every arm, metric and task that the rules name is there.
 * @throws FormatError naming the first that is not.
 */
export function checkNames(
  claim: Claim,
  known: {
    readonly arms: readonly string[];
    readonly metrics: readonly string[];
    readonly tasks: readonly string[];
  },
  path: string,
): void {
  const check = (kind: keyof typeof known, name: string): void => {
    if (known[kind].includes(name)) return;
    throw new FormatError(
      `${path}: a rule names ${kind.slice(0, -1)} "${name}" — the experiment has ${known[kind].join(", ")}.`,
    );
  };
  check("metrics", claim.metric);
  const { predicted, falsifier, headroom } = claim;
  for (const leaf of leaves([...predicted.rules, ...falsifier.rules, ...headroom.rules])) {
    check("metrics", leaf.metric);
    for (const task of leaf.tasks ?? []) check("tasks", task);
    if ("arm" in leaf) check("arms", leaf.arm);
    else {
      check("arms", leaf.left);
      check("arms", leaf.right);
      if (leaf.rightMetric !== undefined) check("metrics", leaf.rightMetric);
    }
  }
}
