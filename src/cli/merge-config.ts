/** What `plasticity merge` merges: a file in mergekit's form, or options. */
import { type CommandContext, suggestion } from "./command.ts";
import { type MergeConfig, mergeMethods, OptionError, readMergeConfig } from "./library.ts";

const fileLimit = 2 ** 18;

/** The method of an id; "_" counts as "-", as mergekit writes it. */
function methodOf(id: string): (typeof mergeMethods)[number] {
  const name = id.replaceAll("_", "-");
  const found = mergeMethods.find((method) => method.id === name);
  if (found) return found;
  const known = mergeMethods.map((method) => method.id);
  const near = suggestion(name, known);
  throw new OptionError(
    `merge: unknown method "${id}"${near || ` — there are ${known.join(", ")}.`}`,
  );
}

function scalarOf(text: string): number | boolean | string {
  if (text === "true" || text === "false") return text === "true";
  return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** `--set name=value`, or one value for each model joined by "+". */
function readSettings(
  given: readonly string[],
  perModel: readonly string[],
  count: number,
): { readonly shared: Record<string, never>; readonly own: readonly Record<string, never>[] } {
  const shared: Record<string, unknown> = {};
  const own = Array.from({ length: count }, (): Record<string, unknown> => ({}));
  for (const text of given) {
    const at = text.indexOf("=");
    const name = text.slice(0, Math.max(0, at));
    if (at < 1 || Object.hasOwn(shared, name) || own.some((table) => Object.hasOwn(table, name))) {
      throw new OptionError(
        `merge: --set "${text}" must be name=value, each name once, as --set density=0.2.`,
      );
    }
    const parts = text.slice(at + 1).split("+");
    if (parts.length === 1) {
      shared[name] = scalarOf(parts[0]!);
      continue;
    }
    if (!perModel.includes(name) || parts.length !== count) {
      const what = perModel.includes(name)
        ? `has ${parts.length} values for ${count} models — give one for each, or one for all`
        : `is one for all models — give one value`;
      throw new OptionError(`merge: --set "${text}" ${what}.`);
    }
    parts.forEach((part, i) => {
      own[i]![name] = scalarOf(part);
    });
  }
  return { shared: shared as never, own: own as never };
}

/**
 * The configuration that a command line means.
 * @throws OptionError when a file and options are both given, or neither.
 */
export async function mergeConfigOf(context: CommandContext): Promise<MergeConfig> {
  const { host, options, positionals } = context;
  const method = options["method"] as string | undefined;
  const base = options["base"] as string | undefined;
  const dtype = options["dtype"] as string;
  const named = (options["models"] as readonly string[] | undefined) ?? [];
  const given = (options["set"] as readonly string[] | undefined) ?? [];
  if (method === undefined) {
    if (named.length > 0 || base !== undefined || given.length > 0) {
      throw new OptionError(
        "merge: --base, --models and --set go with --method — name one, or give a configuration alone.",
      );
    }
    const [path] = positionals;
    if (path === undefined || positionals.length > 1) {
      throw new OptionError(
        "merge: give one configuration in mergekit's form, or --method with --models.",
      );
    }
    const config = readMergeConfig(await host.files.readText(path, fileLimit), path);
    return dtype === "keep" ? config : { ...config, dtype: dtype as never };
  }
  const { id, roles } = methodOf(method);
  // `--models a b c`: the words after the first are positionals.
  const models = [...named, ...positionals];
  if (models.length === 0) {
    throw new OptionError("merge: --models is missing — name the models to merge.");
  }
  const perModel = (roles.merge?.perModel ?? []) as readonly string[];
  const { shared, own } = readSettings(given, perModel, models.length);
  return {
    method: id,
    ...(base !== undefined && { baseModel: base }),
    slices: [{ sources: models.map((model, i) => ({ model, parameters: own[i]! })) }],
    isWhole: true,
    parameters: shared,
    ...(dtype !== "keep" && { dtype: dtype as never }),
  };
}
