/** Reading config.json: every number is checked and capped before anything is built from it. */
import { FormatError, OptionError } from "../errors.ts";
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";

export type Check = (value: unknown) => string | undefined;

const positiveTo =
  (cap: number): Check =>
  (value) =>
    Number.isInteger(value) && (value as number) > 0 && (value as number) <= cap
      ? undefined
      : `must be a whole number from 1 to ${cap}`;

export const positive: Check = positiveTo(2 ** 24);

/** Layers: modules are made for each, so their number is capped lower; the deepest have about 1000. */
export const layerCount: Check = positiveTo(4096);

export const positiveReal: Check = (value) =>
  typeof value === "number" && value > 0 && Number.isFinite(value)
    ? undefined
    : "must be a number above 0";

/** A share of elements zeroed in training. */
export const dropoutRate: Check = (value) =>
  typeof value === "number" && value >= 0 && value < 1
    ? undefined
    : "must be a number from 0 below 1";

/** An id of a vocabulary. */
export const tokenId: Check = (value) =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 24
    ? undefined
    : `must be a whole number from 0 below ${2 ** 24}`;

export function flag(value: unknown): boolean {
  return value === true;
}

/** Reads numbers by key; a missing one takes the default, or is an error. */
export function readConfig(
  where: string,
  json: Readonly<Record<string, unknown>>,
): (key: string, check: Check, missing?: number) => number {
  return (key, check, missing) => {
    const value = json[key] ?? missing;
    if (value === undefined) throw new FormatError(`${where}: "${key}" is missing.`);
    const wrong = check(value);
    if (wrong) {
      throw new FormatError(
        `${where}: "${key}" ${wrong}, got ${JSON.stringify(value).slice(0, 80)}.`,
      );
    }
    return value as number;
  };
}

/** A list of numbers above 0, of any length up to 4096. */
export const positiveReals = (value: unknown): string | undefined =>
  Array.isArray(value) && value.length <= 4096 && value.every((x) => !positiveReal(x))
    ? undefined
    : "must be a list of numbers above 0";

/**
 * What no architecture here computes: weights that another tool quantized.
 * @throws OptionError when config.json speaks of them.
 */
export function refuseQuantized(where: string, json: Readonly<Record<string, unknown>>): void {
  const quantization = json["quantization_config"];
  if (quantization === undefined || quantization === null) return;
  const method = (quantization as Record<string, unknown>)["quant_method"];
  throw new OptionError(
    `${where}: quantization_config${typeof method === "string" ? ` (${method})` : ""} is not supported — give the folder with float weights.`,
  );
}

/** @throws OptionError when a setting has a value other than those that are computed. */
export function oneOf<T extends string>(
  where: string,
  json: Readonly<Record<string, unknown>>,
  key: string,
  known: readonly T[],
  missing: T,
): T {
  const value = json[key] ?? missing;
  if (known.includes(value as T)) return value as T;
  throw new OptionError(`${where}: ${key} ${JSON.stringify(value).slice(0, 80)} is not supported.`);
}

/**
 * Which layers have a window, from `layer_types`.
 * @throws FormatError for another number of layers, OptionError for another type.
 */
export function readLayerTypes(
  where: string,
  json: Readonly<Record<string, unknown>>,
  nLayers: number,
): boolean[] | undefined {
  const types = json["layer_types"];
  if (types === undefined || types === null) return undefined;
  if (!Array.isArray(types) || types.length !== nLayers) {
    throw new FormatError(
      `${where}: "layer_types" must name ${nLayers} layers, got ${JSON.stringify(types).slice(0, 80)}.`,
    );
  }
  return types.map((type) => {
    if (type === "sliding_attention") return true;
    if (type === "full_attention") return false;
    throw new OptionError(
      `${where}: layer_types ${JSON.stringify(type).slice(0, 80)} is not supported — known are full_attention and sliding_attention.`,
    );
  });
}

/** Fields that `transformers` takes as floats alone: 30 in their place is refused, 30.0 is not. */
const floatKeys: ReadonlySet<string> = new Set([
  "attn_logit_softcapping",
  "decoder_layerdrop",
  "encoder_layerdrop",
  "final_logit_softcapping",
  "init_std",
  "initializer_factor",
  "initializer_range",
  "layer_norm_eps",
  "layer_norm_epsilon",
  "rms_norm_eps",
  "time_step_limit",
]);

/** How `transformers` writes the number that JSON has no word for. */
export const infinity = { __float__: "Infinity" } as const;

/** Begins a string that stands for a number in this form. */
const mark = "\u0001";

/**
 * The contents of a config.json: strict JSON but for the bare word Infinity, which older versions of
 * `transformers` write (Mamba-2's time_step_limit). It is read as newer ones write it, `infinity`.
 * @param options.asWritten numbers are kept as they are written, for `configText` to write them so again
 * @throws FormatError
 */
export function parseConfig(
  source: string | Uint8Array,
  where: string,
  { asWritten = false }: { readonly asWritten?: boolean } = {},
): JsonObject {
  const config = parseJson(source, where, {
    infinity,
    ...(asWritten && { number: (text) => mark + text }),
  });
  if (isJsonObject(config)) return config;
  throw new FormatError(`${where}: must be an object.`);
}

/** The text of a config.json, in which floats that are whole have their point. */
export function configText(config: Readonly<Record<string, unknown>>): string {
  const asFloat = (value: unknown): unknown => {
    if (Number.isSafeInteger(value)) return `${mark}${value}.0`;
    const isWhole =
      typeof value === "string" && value[0] === mark && /^-?\d+$/.test(value.slice(1));
    return isWhole ? `${value}.0` : value;
  };
  const text = JSON.stringify(
    config,
    (key, value: unknown) => {
      if (!floatKeys.has(key)) return value;
      return Array.isArray(value) ? value.map(asFloat) : asFloat(value);
    },
    2,
  );
  return `${text.replace(/"\\u0001(-?\d+(\.\d+)?([eE][+-]?\d+)?)"/g, "$1")}\n`;
}
