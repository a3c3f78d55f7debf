/**
 * A PEFT LoRA as llama.cpp loads it (`--lora`): one GGUF file beside the GGUF of its base.
 *
 * Names, metadata and the order of rows are those of llama.cpp's convert_lora_to_gguf.py and of its
 * loader, llama-adapter.cpp:
 *
 *   <base tensor>.lora_a  (rank, in)      <base tensor>.lora_b  (out, rank)
 *   scale = adapter.lora.alpha / rank
 *
 * Llama's queries and keys are stored there with the two halves of each head interleaved, so rows of
 * lora_b are too. For GPT-2 the loader's shapes are followed: (in, out) layers are turned there, which
 * leaves lora_a and lora_b as PEFT has them.
 */
import { UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { type GgufValue, writeGguf } from "../io/gguf.ts";
import { ggufFamilies, placeThere, reorderRows } from "../models/gguf-names.ts";
import type { LanguageModel } from "../models/model.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { LoadedAdapter } from "./adapter.ts";
import type { LoraAdapter } from "./lora.ts";

function scaled(matrix: Tensor, factor: number): Tensor {
  if (factor === 1) return matrix;
  const numbers = Float32Array.from(matrix.numbers(), (x) => x * factor);
  return new Tensor("float32", matrix.shape, numbers);
}

export interface GgufLoraOptions {
  /** Type of the numbers; default float32. */
  readonly dtype?: "float32" | "float16";
  /** `general.name`. */
  readonly name?: string;
}

/**
 * The contents of the file.
 * @throws UnsupportedError for adapters other than LoRA, and for families without a naming here.
 */
export function ggufLora(
  model: LanguageModel,
  { adapter, params }: LoadedAdapter,
  options: GgufLoraOptions = {},
): { metadata: [string, GgufValue][]; tensors: [string, Tensor][] } {
  const type = model.config["model_type"];
  const family = ggufFamilies.find(({ modelType }) => modelType === type);
  if (!family) {
    throw new UnsupportedError(
      `gguf: adapters of a ${model.family} cannot be written — supported are ${ggufFamilies.map(({ modelType }) => modelType).join(", ")}.`,
    );
  }
  if (adapter.kind !== "LORA") {
    throw new UnsupportedError(
      `gguf: a ${adapter.kind} adapter has no GGUF form, LORA has — merge it into its base instead.`,
    );
  }
  if (!(adapter as LoraAdapter).isPlain) {
    throw new UnsupportedError(
      "gguf: this LoRA has more than products beside linear layers (DoRA, biases, embeddings or convolutions), which llama.cpp does not read — merge it into its base instead.",
    );
  }
  const layers = [...(adapter as LoraAdapter).layers];
  // llama.cpp multiplies by alpha / rank with one alpha for all, whatever PEFT divides by: what a
  // layer has beyond that goes into its lora_b.
  const alphas = layers.map(([, { scale, rank }]) => scale * rank);
  const alpha = alphas.find((own) => own !== 0);
  if (alpha === undefined) {
    throw new UnsupportedError(
      "gguf: the adapter's alpha is 0, which llama.cpp reads as no scaling at all — it has no effect to export.",
    );
  }
  const { dtype = "float32" } = options;
  const text = (value: string): GgufValue => ({ type: "string", value });
  const metadata: [string, GgufValue][] = [
    ["general.architecture", text(family.architecture)],
    ["general.type", text("adapter")],
    ...(options.name ? [["general.name", text(options.name)] as [string, GgufValue]] : []),
    // 0: all float32, 1: mostly float16 (llama.cpp's llama_ftype).
    ["general.file_type", { type: "uint32", value: dtype === "float32" ? 0 : 1 }],
    ["adapter.type", text("lora")],
    ["adapter.lora.alpha", { type: "float32", value: alpha }],
  ];
  const tensors: [string, Tensor][] = [];
  for (const [i, [path, layer]] of layers.entries()) {
    const how = placeThere(family, `${path}.weight`);
    if (!how) throw new UnsupportedError(`gguf: llama.cpp has no name for "${path}".`);
    const b = scaled(params[layer.b]!, alphas[i]! / alpha);
    const numbers = b.to("float32").data as Float32Array;
    const turned = how.rows
      ? new Tensor(
          "float32",
          b.shape,
          reorderRows(numbers, b.shape[0]!, how.rows, model.sizes, "there"),
        )
      : b;
    const { name } = how;
    tensors.push(
      [`${name}.lora_a`, params[layer.a]!.to(dtype)],
      [`${name}.lora_b`, turned.to(dtype)],
    );
  }
  return { metadata, tensors };
}

/** Writes a LoRA adapter as a file that llama.cpp loads. */
export async function saveGgufLora(
  files: Files,
  path: string,
  model: LanguageModel,
  adapter: LoadedAdapter,
  options: GgufLoraOptions = {},
): Promise<void> {
  const { metadata, tensors } = ggufLora(model, adapter, options);
  await writeGguf(files, path, metadata, tensors);
}
