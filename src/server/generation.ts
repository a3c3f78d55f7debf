/** What chats and completions have in common: fields, the request to the engine, and what comes of it. */

import type { WireRequest } from "../index.ts";
import type { JsonObject } from "../io/json.ts";
import type { UsageBody } from "./api-types.ts";
import type { RequestExtra } from "./engine-side.ts";
import { ApiError, wrong } from "./errors.ts";
import {
  either,
  type Field,
  flag,
  ignored,
  isText,
  list,
  need,
  nested,
  number,
  object,
  type RequiredField,
  text,
  whole,
} from "./fields.ts";
import { newSeed } from "./ids.ts";

const maxBiases = 1024;

const stopText = text(256, 1);

/** Types of the fields that both routes take. */
interface GenerationFields {
  readonly model: RequiredField<string>;
  readonly stream: Field<boolean>;
  readonly stream_options: Field<{ readonly include_usage: boolean | undefined }>;
  readonly temperature: Field<number>;
  readonly top_p: Field<number>;
  readonly presence_penalty: Field<number>;
  readonly frequency_penalty: Field<number>;
  readonly logit_bias: Field<JsonObject>;
  readonly seed: Field<number>;
  readonly stop: Field<string | readonly string[]>;
  readonly n: Field<number>;
  readonly user: Field<undefined>;
  readonly top_k: Field<number>;
  readonly min_p: Field<number>;
  readonly repetition_penalty: Field<number>;
}

/** Fields that both routes take. */
export const generationFields: GenerationFields = {
  model: need(text(256, 1)),
  stream: flag,
  stream_options: nested({ include_usage: flag, include_obfuscation: ignored }),
  temperature: number(0, 2),
  top_p: number(0, 1),
  presence_penalty: number(-2, 2),
  frequency_penalty: number(-2, 2),
  logit_bias: object,
  seed: whole(-(2 ** 53) + 1, 2 ** 53 - 1),
  stop: either(isText, stopText, list(stopText, 4)) as Field<string | readonly string[]>,
  n: whole(1, 128),
  user: ignored,
  // Beyond the interface, as other local servers have them.
  top_k: whole(-1, 2 ** 31),
  min_p: number(0, 0.999999),
  repetition_penalty: number(0.01, 100),
};

type Generation = {
  readonly [K in keyof GenerationFields]: GenerationFields[K] extends RequiredField<infer T>
    ? T
    : GenerationFields[K] extends Field<infer T>
      ? T | undefined
      : never;
};

export interface GenerationLimits {
  /** Choices of one request. */
  readonly choices: number;
  /** Tokens of one answer. */
  readonly tokens: number;
}

/** Texts that end an answer. */
export function stopsIn(stop: string | readonly string[] | undefined): readonly string[] {
  return stop === undefined ? [] : typeof stop === "string" ? [stop] : stop;
}

function biasesOf(
  given: JsonObject | undefined,
  vocabSize: number,
): Map<number, number> | undefined {
  if (given === undefined) return undefined;
  const entries = Object.entries(given);
  if (entries.length > maxBiases) {
    throw wrong(
      `Invalid 'logit_bias': at most ${maxBiases} tokens are taken, but got ${entries.length}.`,
      "logit_bias",
    );
  }
  const biases = new Map<number, number>();
  for (const [key, value] of entries) {
    const param = `logit_bias.${key.slice(0, 40)}`;
    if (!/^\d{1,9}$/.test(key) || Number(key) >= vocabSize) {
      throw wrong(
        `Invalid key in 'logit_bias': ${key.slice(0, 40)}. Expected token ids from 0 to ${vocabSize - 1}.`,
        "logit_bias",
      );
    }
    biases.set(Number(key), number(-100, 100).read(value, param));
  }
  return biases;
}

/** How many choices are to be made. @throws ApiError 400 for more than are taken. */
export function choicesOf(
  n: number | undefined,
  prompts: number,
  limits: GenerationLimits,
): number {
  const count = (n ?? 1) * prompts;
  if (count <= limits.choices) return n ?? 1;
  throw wrong(
    `Invalid 'n': ${n ?? 1} answers to ${prompts === 1 ? "one prompt" : `${prompts} prompts`} are ${count}, this server takes ${limits.choices} at once.`,
    "n",
    "integer_above_max_value",
  );
}

/**
 * Tokens that an answer may have: what was asked for, what is left behind the prompt, what the server gives.
 * @throws ApiError 400 when the prompt leaves no room.
 */
export function roomFor(
  promptTokens: number,
  asked: number | undefined,
  maxLength: number,
  limits: GenerationLimits,
  param: string,
): number {
  const left = maxLength - promptTokens;
  if (left < 1) {
    throw wrong(
      `This model's maximum context length is ${maxLength} tokens. However, your prompt has ${promptTokens} tokens. Please reduce its length.`,
      param,
      "context_length_exceeded",
    );
  }
  return Math.min(left, limits.tokens, asked ?? Number.POSITIVE_INFINITY);
}

export interface ChoicePlan {
  readonly prompt: Int32Array<ArrayBuffer>;
  readonly maxNewTokens: number;
  readonly adapter: string | undefined;
  readonly key: string;
  readonly stopIds: readonly number[];
  readonly logprobs: number | undefined;
  readonly extra: RequestExtra;
}

/**
 * The engine's requests for the choices of one prompt. With a seed they are the same whenever it is asked
 * again, each other than its neighbours.
 */
export function requestsFor(
  own: Generation,
  plan: ChoicePlan,
  count: number,
  vocabSize: number,
): WireRequest[] {
  const { top_k: topK, extra } = { top_k: own.top_k, ...plan };
  const biases = biasesOf(own.logit_bias, vocabSize);
  const seed = own.seed === undefined ? newSeed() : Math.abs(own.seed);
  const hasExtra = extra.form !== undefined || (extra.stop?.length ?? 0) > 0;
  return Array.from({ length: count }, (_, i) => ({
    prompt: plan.prompt,
    maxNewTokens: plan.maxNewTokens,
    ...(plan.adapter !== undefined && { adapter: plan.adapter }),
    key: plan.key,
    stopIds: plan.stopIds,
    temperature: own.temperature ?? 1,
    // A share of 0 keeps the likeliest token, as the interface has it.
    topP: Math.max(own.top_p ?? 1, 1e-9),
    ...(topK !== undefined && topK > 0 && { topK }),
    ...(own.min_p !== undefined && { minP: own.min_p }),
    ...(own.presence_penalty !== undefined && { presencePenalty: own.presence_penalty }),
    ...(own.frequency_penalty !== undefined && { frequencyPenalty: own.frequency_penalty }),
    ...(own.repetition_penalty !== undefined && { repetitionPenalty: own.repetition_penalty }),
    ...(biases && { logitBias: biases }),
    ...(plan.logprobs !== undefined && { logprobs: plan.logprobs }),
    // Neighbours' seeds lie far apart, so that seeds 1 and 2 share no choice.
    seed: (seed + i * 0x1_0000_0001) % Number.MAX_SAFE_INTEGER,
    ...(hasExtra && { extra }),
  }));
}

/** Tokens of a request, its prompts counted once each. */
export function usageOf(
  parts: readonly {
    readonly promptTokens: number;
    readonly cachedTokens: number;
    readonly newTokens: number;
    readonly isFirst: boolean;
  }[],
): UsageBody {
  const prompts = parts.filter(({ isFirst }) => isFirst);
  const prompt = prompts.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
  const made = parts.reduce((sum, { newTokens }) => sum + newTokens, 0);
  return {
    prompt_tokens: prompt,
    completion_tokens: made,
    total_tokens: prompt + made,
    prompt_tokens_details: {
      cached_tokens: prompts.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0),
    },
  };
}

/** @throws ApiError 400 for a value of a field that has one alone here. */
export function only(isGood: boolean, param: string, sentence: string): void {
  if (!isGood) throw new ApiError(400, sentence, { param, code: "unsupported_value" });
}
