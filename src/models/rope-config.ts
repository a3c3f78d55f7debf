/**
 * Rotary positions in config.json: older files have `rope_theta` and `rope_scaling`, newer ones keep all of
 * it in `rope_parameters`. Both are read; the older form is written, which every reader knows.
 */
import { FormatError, OptionError } from "../errors.ts";
import type { RopeOptions, RopeScaling } from "../nn/rope.ts";
import { positive, positiveReal, positiveReals, readConfig } from "./config.ts";

type Json = Readonly<Record<string, unknown>>;

export interface RopeConfig {
  readonly theta: number;
  readonly scaling?: RopeScaling;
  /** Share of a head's dimensions that are turned, the first ones. */
  readonly partial: number;
}

export interface RopeReading {
  /** Base where the file names none; default 10000. */
  readonly theta?: number;
  /** Length that scalings start from where the file names none; default the model's. */
  readonly originalMaxPositions?: number;
  /** Share of a head's dimensions where the file names none; default 1. */
  readonly partial?: number;
  /** Types that mean "longrope" in this architecture. */
  readonly longRopeNames?: readonly string[];
}

function objectOrNone(where: string, raw: unknown): Json | undefined {
  if (raw === undefined || raw === null) return undefined;
  if (typeof raw !== "object" || Array.isArray(raw)) {
    throw new FormatError(`${where}: rope scaling must be an object, got ${JSON.stringify(raw)}.`);
  }
  return raw as Json;
}

/**
 * @param where begins an error: the architecture
 * @param maxPositions of the model
 * @throws OptionError for a type that is not known, FormatError for numbers out of range.
 */
export function readRope(
  where: string,
  json: Json,
  maxPositions: number,
  options: RopeReading = {},
): RopeConfig {
  const raw =
    objectOrNone(where, json["rope_scaling"]) ?? objectOrNone(where, json["rope_parameters"]) ?? {};
  if ("full_attention" in raw || "sliding_attention" in raw) {
    throw new OptionError(`${where}: rope parameters by type of layer are not supported.`);
  }
  const pick = (key: string, missing: number): number => {
    const value = raw[key] ?? (json["rope_parameters"] as Json | null)?.[key] ?? json[key];
    return readConfig(where, { [key]: value ?? missing })(key, positiveReal);
  };
  const theta = pick("rope_theta", options.theta ?? 10000);
  const partial = pick("partial_rotary_factor", options.partial ?? 1);
  if (partial > 1) {
    throw new FormatError(`${where}: "partial_rotary_factor" must be at most 1, got ${partial}.`);
  }
  const scaling = readScaling(where, raw, {
    ...options,
    originalMaxPositions: options.originalMaxPositions ?? maxPositions,
  });
  return { theta, partial, ...(scaling && { scaling }) };
}

/** The scaling that an object of settings states; none for type "default". */
export function readScaling(
  where: string,
  raw: Json,
  options: RopeReading & { readonly originalMaxPositions: number },
): RopeScaling | undefined {
  const named = (raw["rope_type"] ?? raw["type"] ?? "default") as RopeScaling["type"] | "default";
  const type = options.longRopeNames?.includes(named) ? "longrope" : named;
  const read = readConfig(`${where}: rope_scaling`, raw);
  const maybe = <K extends string>(name: K, key: string): { [P in K]?: number } =>
    (raw[key] === undefined || raw[key] === null
      ? {}
      : { [name]: read(key, positiveReal) }) as never;
  const original = (): number =>
    read("original_max_position_embeddings", positive, options.originalMaxPositions);
  switch (type) {
    case "default":
      return undefined;
    case "linear":
    case "dynamic":
      return { type, factor: read("factor", positiveReal) };
    case "llama3":
      return {
        type,
        factor: read("factor", positiveReal),
        lowFreqFactor: read("low_freq_factor", positiveReal),
        highFreqFactor: read("high_freq_factor", positiveReal),
        originalMaxPositions: original(),
      };
    case "yarn":
      return {
        type,
        factor: read("factor", positiveReal),
        originalMaxPositions: original(),
        ...maybe("betaFast", "beta_fast"),
        ...maybe("betaSlow", "beta_slow"),
        ...maybe("attentionFactor", "attention_factor"),
        ...maybe("mscale", "mscale"),
        ...maybe("mscaleAllDim", "mscale_all_dim"),
        ...(raw["truncate"] === false && { truncate: false }),
      };
    case "longrope":
      return {
        type,
        shortFactor: read("short_factor", positiveReals) as unknown as number[],
        longFactor: read("long_factor", positiveReals) as unknown as number[],
        originalMaxPositions: original(),
        ...maybe("factor", "factor"),
        ...maybe("attentionFactor", "attention_factor"),
      };
    default:
      throw new OptionError(
        `${where}: rope scaling ${JSON.stringify(type).slice(0, 80)} is not supported — known are linear, dynamic, yarn, llama3, longrope.`,
      );
  }
}

/** `rope_scaling` of config.json; null for none. */
export function scalingToJson(scaling: RopeScaling | undefined): Json | null {
  if (!scaling) return null;
  const entries: Record<string, unknown> = { rope_type: scaling.type };
  const names: Readonly<Record<string, string>> = {
    factor: "factor",
    lowFreqFactor: "low_freq_factor",
    highFreqFactor: "high_freq_factor",
    originalMaxPositions: "original_max_position_embeddings",
    betaFast: "beta_fast",
    betaSlow: "beta_slow",
    attentionFactor: "attention_factor",
    mscale: "mscale",
    mscaleAllDim: "mscale_all_dim",
    truncate: "truncate",
    shortFactor: "short_factor",
    longFactor: "long_factor",
  };
  const full: Record<string, unknown> =
    scaling.type === "llama3"
      ? { lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192, ...scaling }
      : { ...scaling };
  for (const [name, key] of Object.entries(names)) {
    if (full[name] !== undefined) entries[key] = full[name];
  }
  return entries;
}

/** What the layers need. */
export function ropeOptions(rope: RopeConfig, headDim: number, maxPositions: number): RopeOptions {
  const { theta, partial, scaling } = rope;
  return {
    headDim: Math.trunc(headDim * partial),
    theta,
    maxPositions,
    ...(scaling && { scaling }),
  };
}
