/**
 * Rewards that can be verified: numbers for answers by rules alone, without a model. A reward of one's own is
 * a function of the same form.
 */
import { FormatError, OptionError } from "../errors.ts";
import { fitsSchema } from "../infer/grammar/validate.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";

/** An answer that a policy gave. */
export interface GivenAnswer {
  readonly prompt: string;
  readonly answer: string;
  /** What the data has as the right answer. */
  readonly expected: string;
  /** New tokens, with the one that ended it. */
  readonly tokens: number;
  /** Whether it ended by itself, and not at the longest length. */
  readonly isEnded: boolean;
}

/** How good an answer is; higher is better, any finite number. */
export type Reward = (answer: GivenAnswer) => number | Promise<number>;

/** Longest text that a rule reads, in UTF-16 units. */
const maxText = 2 ** 20;

/** 1 when the answer is the expected one, white space at the ends aside. */
export function exactReward(options: { readonly ignoreCase?: boolean } = {}): Reward {
  const plain = (text: string): string =>
    options.ignoreCase ? text.trim().toLowerCase() : text.trim();
  return ({ answer, expected }) => (plain(answer) === plain(expected) ? 1 : 0);
}

/** The last number in a text: `1,234.5` and `-3e2` are read; `undefined` where there is none. */
export function lastNumber(text: string): number | undefined {
  const found = text
    .slice(-maxText)
    .match(/[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?/g);
  const value = found && Number(found.at(-1)!.replaceAll(",", ""));
  return value !== null && Number.isFinite(value) ? (value as number) : undefined;
}

/**
 * 1 when the last number of the answer is that of the expected answer.
 * @param options tolerance: largest difference, relative to numbers beyond 1; default 1e-6
 */
export function numberReward(options: { readonly tolerance?: number } = {}): Reward {
  const { tolerance = 1e-6 } = options;
  return ({ answer, expected }) => {
    const [own, right] = [lastNumber(answer), lastNumber(expected)];
    if (own === undefined || right === undefined) return 0;
    return Math.abs(own - right) <= tolerance * Math.max(1, Math.abs(right)) ? 1 : 0;
  };
}

/** Falls from 1 at `target` tokens and below to 0 at twice as many: answers should be short. */
export function lengthReward(options: { readonly target: number }): Reward {
  const { target } = options;
  if (!(target >= 1 && target <= 1e6)) {
    throw new OptionError(`rewards: the target length must be in [1, 1e6], got ${target}.`);
  }
  return ({ tokens }) => Math.min(1, Math.max(0, 2 - tokens / target));
}

/** Keywords of JSON Schema that are understood; others are refused. */
const keywords: readonly string[] = [
  "type",
  "properties",
  "required",
  "additionalProperties",
  "items",
  "enum",
  "const",
  "minimum",
  "maximum",
  "minLength",
  "maxLength",
  "minItems",
  "maxItems",
  "title",
  "description",
  "$schema",
];

function checkSchema(schema: JsonValue, path: string, depth = 0): void {
  if (!isJsonObject(schema))
    throw new OptionError(`rewards: the schema at ${path} must be an object.`);
  if (depth > 32) throw new OptionError("rewards: the schema is more than 32 levels deep.");
  const unknown = Object.keys(schema).find((key) => !keywords.includes(key));
  if (unknown !== undefined) {
    throw new OptionError(
      `rewards: the schema at ${path} has "${unknown}", which is not understood — use ${keywords.slice(0, 13).join(", ")}.`,
    );
  }
  const { properties, items } = schema as { properties?: JsonValue; items?: JsonValue };
  if (properties !== undefined && isJsonObject(properties)) {
    for (const [name, inner] of Object.entries(properties)) {
      checkSchema(inner, `${path}.${name}`, depth + 1);
    }
  }
  if (items !== undefined) checkSchema(items, `${path}[]`, depth + 1);
}

/**
 * 1 when the answer is JSON that fits a schema, 0.2 when it is other JSON, 0 when it is none. A fence of three
 * backticks round it is looked through.
 * @throws OptionError when the schema has keywords that are not understood.
 */
export function jsonReward(options: { readonly schema?: JsonObject } = {}): Reward {
  const { schema = {} } = options;
  checkSchema(schema, "$");
  return ({ answer }) => {
    const inner = /^\s*```(?:json)?\s*\n([\s\S]*?)```\s*$/.exec(answer)?.[1] ?? answer;
    let value: JsonValue;
    try {
      value = parseJson(new TextEncoder().encode(inner.trim()), "answer", {
        maxBytes: maxText,
        maxDepth: 64,
      });
    } catch (error) {
      if (error instanceof FormatError) return 0;
      throw error;
    }
    return fitsSchema(value, schema) ? 1 : 0.2;
  };
}

/** A weighted sum of rewards. */
export function sumRewards(
  parts: readonly { readonly reward: Reward; readonly weight?: number }[],
): Reward {
  return async (answer) => {
    let total = 0;
    for (const { reward, weight = 1 } of parts) total += weight * (await reward(answer));
    return total;
  };
}

export const rewardNames: readonly string[] = ["exact", "number", "json", "length"];

export interface RewardSettings {
  /** Of "json". */
  readonly schema?: JsonObject;
  /** Of "length": tokens. */
  readonly target?: number;
}

/**
 * A reward by its name, or several as `number+0.1*length`.
 * @throws OptionError for unknown names, or a weight that is no number.
 */
export function rewardByName(text: string, settings: RewardSettings = {}): Reward {
  const parts = text.split("+").map((part) => {
    const [first, second] = part.split("*") as [string, string | undefined];
    const name = (second ?? first).trim();
    const weight = second === undefined ? 1 : Number(first);
    if (!Number.isFinite(weight)) {
      throw new OptionError(
        `rewards: the weight in "${part.trim()}" is no number — write 0.1*${name}.`,
      );
    }
    return { reward: named(name, settings), weight };
  });
  return parts.length === 1 && parts[0]!.weight === 1 ? parts[0]!.reward : sumRewards(parts);
}

function named(name: string, { schema, target = 32 }: RewardSettings): Reward {
  switch (name) {
    case "exact":
      return exactReward();
    case "number":
      return numberReward();
    case "json":
      return jsonReward(schema && { schema });
    case "length":
      return lengthReward({ target });
    default:
      throw new OptionError(
        `rewards: unknown reward "${name}" — known are ${rewardNames.join(", ")}, and sums as number+0.1*length.`,
      );
  }
}
