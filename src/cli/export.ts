/** `plasticity export`: a model for transformers.js, an adapter for llama.cpp. */
import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { type Command, type CommandContext, oneOf, realFrom } from "./command.ts";
import {
  loadAdapter,
  loadModel,
  loadTokenizer,
  type OnnxVariant,
  OptionError,
  onnxVariants,
  readModelConfig,
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
  const tokenizer = existsSync(join(path, "tokenizer.json"))
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

async function exportGgufLora(context: CommandContext, out: string): Promise<void> {
  const { host, output, options } = context;
  const folder = options["adapter"] as string | undefined;
  if (folder === undefined) {
    throw new OptionError("export: --adapter is missing — GGUF LoRA is a form of an adapter.");
  }
  if (!out.endsWith(".gguf")) {
    throw new OptionError(`export: --out "${out}" must end in .gguf, which llama.cpp loads.`);
  }
  const { model } = await readModelConfig(host.files, modelFolder(options["model"] as string));
  const adapter = await loadAdapter(host.files, folder, model);
  const dtype = options["dtype"] as "float32" | "float16";
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
  else await exportGgufLora(context, out);
}

export const exportCommand: Command = {
  name: "export",
  summary: "write a model for transformers.js (ONNX), or an adapter for llama.cpp (GGUF LoRA)",
  usage:
    "plasticity export --out <path> [--format onnx|gguf-lora] [--model <folder>] [--adapter <folder>]",
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
      about: "onnx: a folder that @huggingface/transformers loads; gguf-lora: a file for llama.cpp",
      check: oneOf("onnx", "gguf-lora"),
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
        "onnx: largest allowed max |difference| / max |reference| (default fp32 1e-4, fp16 1e-2, q8 5e-2, q4 0.5)",
      check: realFrom(0, 1e6),
    },
    dtype: {
      type: "string",
      default: "float32",
      about: "gguf-lora: float32 or float16",
      check: oneOf("float32", "float16"),
    },
    threads: threadsOption,
  },
  run,
};
