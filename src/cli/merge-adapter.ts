/** `plasticity merge-adapter`: write an adapter into its base model, verified first. */
import { type Command, type CommandContext, oneOf, realFrom } from "./command.ts";
import {
  loadAdapter,
  loadModel,
  loadTokenizer,
  type MergeAdapterOptions,
  OptionError,
  verifyMerge,
} from "./library.ts";
import { modelFolder, modelOption, openBackend, threadsOption } from "./models.ts";
import { checkNew, writeFolder } from "./new-folder.ts";

async function run({ host, output, options, signal }: CommandContext): Promise<void> {
  const { adapter: folder, out } = options as { adapter?: string; out?: string };
  if (folder === undefined) {
    throw new OptionError("merge-adapter: --adapter is missing — give an adapter folder.");
  }
  if (out === undefined) {
    throw new OptionError("merge-adapter: --out is missing — name the folder to write.");
  }
  checkNew("merge-adapter", out);
  const path = modelFolder(options["model"] as string);
  const base = await loadModel(host.files, path);
  const adapter = await loadAdapter(host.files, folder, base.model);
  const tokenizer = (await host.files.info(host.files.join(path, "tokenizer.json")))
    ? await loadTokenizer(host.files, path)
    : undefined;
  const backend = await openBackend(output, options["threads"] as number | undefined);
  output.progress("comparing logits");
  const merge = await verifyMerge(host.files, backend, base, adapter, {
    dtype: options["dtype"] as NonNullable<MergeAdapterOptions["dtype"]>,
    ...(options["tolerance"] !== undefined && { tolerance: options["tolerance"] as number }),
    ...(options["max-shard-bytes"] !== undefined && {
      maxShardBytes: options["max-shard-bytes"] as number,
    }),
    ...(tokenizer && { tokenizer }),
  });
  const { difference, tolerance } = merge;
  output.line(
    `Logits of base and adapter against the merged weights as stored, ${difference.rows} positions:`,
  );
  output.line(`  max |difference|                     ${difference.maxAbsolute.toExponential(2)}`);
  output.line(
    `  max |difference| / max |reference|   ${difference.maxRelative.toExponential(2)}, allowed ${tolerance}`,
  );
  output.line(`  same likeliest token                 ${(100 * difference.sameTop).toFixed(1)} %`);
  if (signal.aborted) {
    output.warn("Stopped; nothing was written.");
    process.exitCode = 130;
    return;
  }
  output.progress("writing");
  const report = await writeFolder(out, (temporary) => merge.write(temporary));
  output.line(
    `Wrote ${out}: ${report.changed.length} weights changed, stored as ${report.dtypes.join(", ")}.`,
  );
  if (report.leftOut.length > 0) {
    output.line(`Left out (weights without the adapter): ${report.leftOut.join(", ")}`);
  }
  output.json({ out, ...report });
}

export const mergeAdapterCommand: Command = {
  name: "merge-adapter",
  summary: "write an adapter into its base model, verified by logits before anything is written",
  usage: "plasticity merge-adapter --adapter <folder> --out <folder> [--model <folder>]",
  example: "plasticity merge-adapter --model builtin --adapter runs/lora --out merged",
  options: {
    model: modelOption,
    adapter: { type: "string", value: "folder", about: "the adapter" },
    out: { type: "string", value: "folder", about: "the folder to write; it must not exist" },
    dtype: {
      type: "string",
      default: "keep",
      about: "type of the weights on disk: keep, float32, float16 or bfloat16",
      check: oneOf("keep", "float32", "float16", "bfloat16"),
    },
    tolerance: {
      type: "number",
      about:
        "largest allowed max |difference| / max |reference| of the logits (default 1e-4 for float32, 1e-2 float16, 5e-2 bfloat16)",
      check: realFrom(0, 1e6),
    },
    "max-shard-bytes": {
      type: "number",
      about: "most bytes of weights in one file (default 5e9)",
      check: realFrom(1, 1e15),
    },
    threads: threadsOption,
  },
  run,
};
