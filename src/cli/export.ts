/** `plasticity export`: a model for transformers.js or llama.cpp, an adapter for llama.cpp. */
import { basename, resolve } from "node:path";
import { type Command, type CommandContext, oneOf, realFrom } from "./command.ts";
import {
  type GgufDtype,
  ggufDtypes,
  loadAdapter,
  loadModel,
  loadTokenizer,
  type OnnxVariant,
  OptionError,
  onnxVariants,
  readModelConfig,
  saveGguf,
  saveGgufLora,
  verifyOnnxExport,
} from "./library.ts";
import { modelFolder, modelOption, openBackend, threadsOption } from "./models.ts";
import { checkNew, removeStale, writeFolder } from "./new-folder.ts";

function variantsOf(text: string): OnnxVariant[] {
  return text.split(",").map((word) => {
    const variant = onnxVariants.find((known) => known === word.trim());
    if (variant) return variant;
    throw new OptionError(
      `export: --variants has "${word.trim()}" — known are ${onnxVariants.join(", ")}.`,
    );
  });
}

async function exportOnnx(context: CommandContext, out: string): Promise<void> {
  const { host, output, options, signal } = context;
  const path = modelFolder(options["model"] as string);
  const variants = variantsOf(options["variants"] as string);
  const base = await loadModel(host.files, path);
  const folder = options["adapter"] as string | undefined;
  const adapter =
    folder === undefined ? undefined : await loadAdapter(host.files, folder, base.model);
  const tokenizer = (await host.files.info(host.files.join(path, "tokenizer.json")))
    ? await loadTokenizer(host.files, path)
    : undefined;
  const backend = await openBackend(output, options["threads"] as number | undefined);
  output.progress("comparing logits");
  const verified = await verifyOnnxExport(host.files, backend, base, {
    variants,
    ...(adapter && { adapter }),
    ...(tokenizer && { tokenizer }),
    ...(options["tolerance"] !== undefined && { tolerance: options["tolerance"] as number }),
  });
  output.line(
    "Logits of each file against the engine's, read at once, padded, and token by token:",
  );
  output.table(
    ["file", "bytes", "max |difference|", "relative", "allowed", "same token"],
    verified.variants.map(({ file, bytes, difference, tolerance }) => [
      file,
      String(bytes),
      difference.maxAbsolute.toExponential(2),
      difference.maxRelative.toExponential(2),
      String(tolerance),
      `${(100 * difference.sameTop).toFixed(1)} %`,
    ]),
    ["left", "right", "right", "right", "right", "right"],
  );
  if (signal.aborted) {
    output.warn("Stopped; nothing was written.");
    process.exitCode = 130;
    return;
  }
  output.progress("writing");
  const files = await writeFolder(out, (temporary) => verified.write(temporary));
  output.line(`Wrote ${out}: ${files.join(", ")}.`);
  const [first] = verified.variants;
  output.line(
    `In JavaScript: env.localModelPath = the folder above it; pipeline("text-generation", "${basename(resolve(out))}", { dtype: "${first!.variant}" })`,
  );
  output.json({ format: "onnx", out, files, variants: verified.variants });
}

function checkEnding(out: string): void {
  if (out.endsWith(".gguf")) return;
  throw new OptionError(`export: --out "${out}" must end in .gguf, which llama.cpp loads.`);
}

async function exportGguf(context: CommandContext, out: string): Promise<void> {
  const { host, output, options } = context;
  const model = options["model"] as string;
  if (options["adapter"] !== undefined) {
    throw new OptionError(
      "export: --adapter goes with onnx and gguf-lora — for gguf merge it first (plasticity merge-adapter), or write it beside as gguf-lora.",
    );
  }
  checkEnding(out);
  const dtype = (options["dtype"] as string | undefined) ?? "f16";
  if (!(ggufDtypes as readonly string[]).includes(dtype)) {
    throw new OptionError(
      `export: --dtype "${dtype}" is no form of a GGUF model — known are ${ggufDtypes.join(", ")}.`,
    );
  }
  await removeStale(out);
  output.progress("writing");
  const report = await saveGguf(host.files, modelFolder(model), out, {
    dtype: dtype as GgufDtype,
    name: basename(resolve(model)).replace(/\.gguf$/i, ""),
  });
  const types = Object.entries(report.types).map(([type, count]) => `${count} ${type}`);
  output.line(
    `Wrote ${out}: ${report.architecture}, ${report.tensors} tensors (${types.join(", ")}).`,
  );
  if (!report.hasTokenizer)
    output.warn("The folder has no tokenizer.json; the file has none either.");
  output.line(`In llama.cpp: llama-cli -m ${out}`);
  output.json({ format: "gguf", out, dtype, ...report });
}

async function exportGgufLora(context: CommandContext, out: string): Promise<void> {
  const { host, output, options } = context;
  const folder = options["adapter"] as string | undefined;
  if (folder === undefined) {
    throw new OptionError("export: --adapter is missing — GGUF LoRA is a form of an adapter.");
  }
  checkEnding(out);
  const { model } = await readModelConfig(host.files, modelFolder(options["model"] as string));
  const adapter = await loadAdapter(host.files, folder, model);
  const dtype = (options["dtype"] as string | undefined) ?? "float32";
  if (dtype !== "float32" && dtype !== "float16") {
    throw new OptionError(`export: --dtype of gguf-lora is float32 or float16, got "${dtype}".`);
  }
  await removeStale(out);
  await saveGgufLora(host.files, out, model, adapter, {
    dtype,
    name: basename(resolve(folder)),
  });
  const tensors = 2 * adapter.adapter.targets.length;
  output.line(`Wrote ${out}: ${tensors} tensors of ${dtype} for ${model.family}.`);
  output.line(`In llama.cpp: llama-cli -m <the base as GGUF> --lora ${out}`);
  output.json({ format: "gguf-lora", out, tensors, dtype, architecture: model.family });
}

async function run(context: CommandContext): Promise<void> {
  const { out, format } = context.options as { out?: string; format?: string };
  if (out === undefined) throw new OptionError("export: --out is missing — name what to write.");
  checkNew("export", out);
  if (format === "onnx") await exportOnnx(context, out);
  else if (format === "gguf") await exportGguf(context, out);
  else await exportGgufLora(context, out);
}

export const exportCommand: Command = {
  name: "export",
  summary:
    "write a model for transformers.js (ONNX) or llama.cpp (GGUF), or an adapter (GGUF LoRA)",
  usage:
    "plasticity export --out <path> [--format onnx|gguf|gguf-lora] [--model <folder>] [--adapter <folder>]",
  example: "plasticity export --model builtin --variants fp32,q4 --out exported/builtin",
  options: {
    model: modelOption,
    adapter: {
      type: "string",
      value: "folder",
      about:
        "an adapter: written into the weights (onnx), or itself the thing to write (gguf-lora)",
    },
    format: {
      type: "string",
      default: "onnx",
      about:
        "onnx: a folder that @huggingface/transformers loads; gguf: a model for llama.cpp; gguf-lora: an adapter for it",
      check: oneOf("onnx", "gguf", "gguf-lora"),
    },
    out: { type: "string", value: "path", about: "the folder or file to write; it must not exist" },
    variants: {
      type: "string",
      value: "list",
      default: "fp32",
      about: `onnx: forms of the weights, of ${onnxVariants.join(", ")}, with commas between`,
    },
    tolerance: {
      type: "number",
      about:
        "onnx: largest allowed max |difference| / max |reference| (default fp32 1e-4, fp16 1e-2, q8 0.1, q4 0.5)",
      check: realFrom(0, 1e6),
    },
    dtype: {
      type: "string",
      about: `gguf: ${ggufDtypes.join(", ")} (default f16); gguf-lora: float32 or float16 (default float32)`,
      check: oneOf(...ggufDtypes, "float32", "float16"),
    },
    threads: threadsOption,
  },
  run,
};
