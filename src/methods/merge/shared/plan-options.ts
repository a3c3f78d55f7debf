/** Options of a method for every model and tensor, from the tables of a configuration. */
import { OptionError } from "../../../errors.ts";
import { type GivenOptions, readOptions } from "../../../options.ts";
import type { AnyMethod } from "../../method.ts";
import type { MergeConfig, SliceConfig, SourceConfig } from "./config.ts";
import { lookUp, type Parameters } from "./settings.ts";

/** As this package writes names: `filter_wise` is `filterWise`. */
const camel = (name: string): string =>
  name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());

/** mergekit's options that change no number here, and the values at which that is so. */
const harmless: Readonly<Record<string, readonly unknown[] | "any">> = {
  // Its masks take less memory; ours always do.
  int8_mask: "any",
  rescale: [false],
};

function isHarmless(name: string, value: unknown): boolean {
  const allowed = Object.hasOwn(harmless, name) ? harmless[name] : [];
  return allowed === "any" || allowed.includes(value);
}

function checkTable(
  where: string,
  table: Parameters | undefined,
  method: AnyMethod,
  isPerModel: boolean,
): void {
  const known = Object.keys(method.options);
  const own = method.roles.merge!.perModel as readonly string[];
  for (const [name, value] of Object.entries(table ?? {})) {
    const isKnown = known.includes(camel(name));
    if (!isKnown && isHarmless(name, value)) continue;
    if (!isKnown) {
      throw new OptionError(
        `${where}: ${method.id} has no option "${name}" — it has ${known.join(", ")}.`,
      );
    }
    if (isPerModel && !own.includes(camel(name))) {
      throw new OptionError(
        `${where}: "${name}" is one for all models — put it under the parameters of the whole merge; a model has ${own.join(", ") || "none"} of its own.`,
      );
    }
  }
}

/**
 * Refuses options that the method does not have, or that stand where they do not count.
 * @throws OptionError naming the table.
 */
export function checkParameters(config: MergeConfig, method: AnyMethod): void {
  checkTable("parameters", config.parameters, method, false);
  for (const [i, slice] of config.slices.entries()) {
    const where = config.isWhole ? "" : `slices[${i}].`;
    checkTable(`${where}parameters`, slice.parameters, method, false);
    for (const [k, { parameters }] of slice.sources.entries()) {
      const place = config.isWhole ? `models[${k}]` : `${where}sources[${k}]`;
      checkTable(`${place}.parameters`, parameters, method, true);
    }
  }
}

function snakeTable(table: Parameters | undefined): Parameters | undefined {
  if (!table) return undefined;
  return Object.fromEntries(Object.entries(table).map(([name, value]) => [camel(name), value]));
}

/** Options of a model for a tensor, checked and with defaults. */
export type OptionReader = (
  source: SourceConfig,
  slice: SliceConfig,
  /** The tensor's name in the source, and in the result. */
  nameIn: string,
  name: string,
  t: number,
) => object;

/** Reads options for one method; the same ones are checked once. */
export function optionReader(config: MergeConfig, method: AnyMethod): OptionReader {
  const perModel = new Set(method.roles.merge!.perModel as readonly string[]);
  const known = new Map<string, object>();
  const whole = snakeTable(config.parameters);
  return (source, slice, nameIn, name, t) => {
    const own = snakeTable(source.parameters);
    const shared = snakeTable(slice.parameters);
    const given: Record<string, unknown> = {};
    for (const option of Object.keys(method.options)) {
      const value = perModel.has(option)
        ? lookUp([own, shared, whole, config.defaults], option, nameIn, t)
        : lookUp([shared, whole, config.defaults], option, name, t);
      if (value !== undefined) given[option] = value;
    }
    const key = JSON.stringify(given);
    const found =
      known.get(key) ??
      readOptions<object, never>(method.id, method.options as never, given as GivenOptions);
    known.set(key, found);
    return found;
  };
}
