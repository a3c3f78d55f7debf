/** `plasticity adapter`: several LoRA adapters as one, and other adapters as a LoRA. */
import { type Command, type CommandContext, oneOf, realFrom, wholeFrom } from "./command.ts";
import {
  type CombineMethod,
  combineAdapters,
  combineMethods,
  compareLogits,
  convertToLora,
  type LanguageModel,
  type LoadedAdapter,
  type LoadedModel,
  loadAdapter,
  loadAnyModel,
  OptionError,
  type PretrainedModel,
  probeInputs,
  probeLogits,
  saveAdapter,
} from "./library.ts";
import { modelFolder, modelOption, openBackend, threadsOption } from "./models.ts";
import { checkNew, writeFolder } from "./new-folder.ts";

const actions = ["combine", "convert"] as const;
/** Options that only one of the actions has. */
const ownOptions: Readonly<Record<(typeof actions)[number], readonly string[]>> = {
  combine: ["method", "weights", "density", "majority-sign", "seed"],
  convert: ["energy", "tolerance"],
};

const percent = (share: number): string => `${(100 * share).toFixed(share > 0.999 ? 3 : 1)} %`;

function numbersOf(text: string): number[] {
  const list = text.split(",").map((part) => (part.trim() === "" ? Number.NaN : Number(part)));
  if (list.every(Number.isFinite)) return list;
  throw new OptionError(
    `adapter: --weights must be numbers with commas, as 1,-0.5, got "${text}".`,
  );
}

/** The action, the folders it reads and the one it writes, checked before anything is opened. */
function planned({ options, positionals, given }: CommandContext): {
  readonly action: (typeof actions)[number];
  readonly folders: readonly string[];
  readonly out: string;
} {
  const [word, ...folders] = positionals;
  const action = actions.find((one) => one === word);
  if (!action) {
    throw new OptionError(
      word === undefined
        ? "adapter: say what to do — combine or convert."
        : `adapter: knows combine and convert, got "${word}".`,
    );
  }
  const other = action === "combine" ? "convert" : "combine";
  const stray = ownOptions[other].find((name) => given.has(name));
  if (stray !== undefined) {
    throw new OptionError(`adapter ${action}: --${stray} is of adapter ${other} — leave it out.`);
  }
  if (folders.length === 0) {
    throw new OptionError(
      `adapter ${action}: name the adapter folder${action === "combine" ? "s" : ""} to read.`,
    );
  }
  if (action === "convert" && folders.length > 1) {
    throw new OptionError(
      `adapter convert: takes one adapter folder, got ${folders.length} — convert one after another.`,
    );
  }
  const out = options["out"] as string | undefined;
  if (out === undefined) {
    throw new OptionError(`adapter ${action}: --out is missing — name the folder to write.`);
  }
  checkNew(`adapter ${action}`, out);
  return { action, folders, out };
}

/** How far a model's logits with one adapter are from those with another. */
async function apart(
  { output, options }: CommandContext,
  { model, params }: LoadedModel<PretrainedModel>,
  was: LoadedAdapter,
  now: LoadedAdapter,
): Promise<number | undefined> {
  if (model.kind !== "causal-lm") return undefined;
  const backend = await openBackend(output, options["threads"] as number | undefined);
  output.progress("comparing logits");
  const language = model as LanguageModel;
  const ids = probeInputs(language.sizes);
  const judge = await probeLogits(backend, language, params, ids, was);
  const other = await probeLogits(backend, language, params, ids, now);
  return compareLogits(judge, other).maxRelative;
}

async function combine(
  { output, options }: CommandContext,
  base: LoadedModel<PretrainedModel>,
  adapters: readonly LoadedAdapter[],
): Promise<{ readonly made: LoadedAdapter; readonly report: object }> {
  const method = (options["method"] as CombineMethod | undefined) ?? "svd";
  const weights = options["weights"] as string | undefined;
  const made = combineAdapters(base.model, adapters, {
    method,
    ...(weights !== undefined && { weights: numbersOf(weights) }),
    ...(options["density"] !== undefined && { density: options["density"] as number }),
    ...(options["rank"] !== undefined && { rank: options["rank"] as number }),
    majoritySign: options["majority-sign"] as "total" | "frequency",
    seed: options["seed"] as number,
  });
  const ranks = [...made.adapter.parts.values()].map(({ rank }) => rank);
  const shares = Object.values(made.energy);
  output.line(
    `Combined ${adapters.length} adapters by ${method}: ${ranks.length} layers of rank ${rangeOf(ranks)}.`,
  );
  if (method.endsWith("svd")) {
    output.line(`Energy kept in each layer: ${percent(Math.min(...shares))} at least.`);
  }
  return { made, report: { method, layers: ranks.length, energy: made.energy } };
}

function rangeOf(numbers: readonly number[]): string {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  return least === most ? String(least) : `${least} to ${most}`;
}

async function convert(
  context: CommandContext,
  base: LoadedModel<PretrainedModel>,
  adapter: LoadedAdapter,
): Promise<{ readonly made: LoadedAdapter; readonly report: object }> {
  const { output, options, signal } = context;
  const [rank, energy] = [options["rank"], options["energy"]] as (number | undefined)[];
  const made = convertToLora(base.model, adapter, {
    ...(rank !== undefined && { rank }),
    ...(energy !== undefined && { energy }),
    signal,
    onProgress: (done, of) => output.progress(`decomposing: ${done} of ${of} layers`),
  });
  const { layers } = made;
  output.line(
    `Converted ${adapter.adapter.title} to LoRA: ${layers.length} layers of rank ${rangeOf(layers.map((layer) => layer.rank))}, ${percent(made.energy)} of the energy kept (${percent(Math.min(...layers.map((layer) => layer.energy)))} at least in a layer).`,
  );
  const difference = await apart(context, base, adapter, made);
  if (difference !== undefined) {
    output.line(
      `Logits beside those of the adapter as it was: max |difference| / max |reference| ${difference.toExponential(2)}.`,
    );
    const tolerance = options["tolerance"] as number | undefined;
    if (tolerance !== undefined && !(difference <= tolerance)) {
      throw new OptionError(
        `adapter convert: the logits differ by ${difference.toExponential(2)}, --tolerance allows ${tolerance} — nothing was written; take a higher rank or energy.`,
      );
    }
  }
  return { made, report: { layers, energy: made.energy, difference: difference ?? null } };
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const { action, folders, out } = planned(context);
  const path = modelFolder(options["model"] as string);
  const base = await loadAnyModel(host.files, path);
  const adapters: LoadedAdapter[] = [];
  for (const folder of folders) {
    adapters.push(await loadAdapter(host.files, folder, base.model));
  }
  const { made, report } = await (action === "combine"
    ? combine(context, base, adapters)
    : convert(context, base, adapters[0]!));
  if (signal.aborted) {
    output.warn("Stopped; nothing was written.");
    process.exitCode = 130;
    return;
  }
  await writeFolder(out, (temporary) =>
    saveAdapter(host.files, temporary, made.adapter, made.params, { base: path }),
  );
  output.line(`Wrote ${out}, a LoRA that PEFT reads too.`);
  output.json({ out, action, adapters: folders, ...report });
}

export const adapterCommand: Command = {
  name: "adapter",
  summary: "several LoRA adapters as one, or another adapter as a plain LoRA",
  usage:
    "plasticity adapter combine <folder> ... --out <folder> [--method svd] [--weights 1,0.5]\n       plasticity adapter convert <folder> --rank <n> | --energy <share> --out <folder>",
  example:
    "plasticity adapter combine runs/a runs/b --method ties --density 0.3 --weights 1,0.5 --out both",
  maxPositionals: 257,
  options: {
    model: modelOption,
    out: { type: "string", value: "folder", about: "the folder to write; it must not exist" },
    rank: {
      type: "number",
      about:
        "rank of what is written; combine by svd takes the adapters' largest where it is not given",
      check: wholeFrom(1, 65536),
    },
    method: {
      type: "string",
      value: "id",
      about: `${combineMethods.join(", ")} (default svd)`,
      check: oneOf(...combineMethods),
      group: "Combine",
    },
    weights: {
      type: "string",
      value: "numbers",
      about: "one for each adapter, with commas; below 0 takes an effect away (default 1 each)",
      group: "Combine",
    },
    density: {
      type: "number",
      about: "share of entries that ties, dare and magnitude-prune keep",
      check: realFrom(0, 1),
      group: "Combine",
    },
    "majority-sign": {
      type: "string",
      default: "total",
      about: "which sign wins with ties: total (of the sum) or frequency (of more adapters)",
      check: oneOf("total", "frequency"),
      group: "Combine",
    },
    seed: {
      type: "number",
      default: 0,
      about: "of what dare draws",
      check: wholeFrom(0, 2 ** 53 - 1),
      group: "Combine",
    },
    energy: {
      type: "number",
      about: "in place of a rank: share of each layer's sum of squares to keep, as 0.99",
      check: realFrom(0, 1),
      group: "Convert",
    },
    tolerance: {
      type: "number",
      about: "write nothing when logits differ by more, max |difference| / max |reference|",
      check: realFrom(0, 1e6),
      group: "Convert",
    },
    threads: threadsOption,
  },
  run,
};
