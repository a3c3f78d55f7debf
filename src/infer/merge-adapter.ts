/**
 * An adapter written into its base model: a folder that anything loads without the adapter.
 *
 * The logits of base and adapter are compared with those of the merged weights as they will be
 * stored, after rounding. Nothing is written when they are too far apart.
 */
import type { AnyAdapterKind, LoadedAdapter } from "../adapters/adapter.ts";
import { loadAdapter } from "../adapters/peft.ts";
import type { Backend } from "../backend/backend.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError, StateError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { type Checkpoint, openCheckpoint } from "../io/checkpoint.ts";
import { fileDtype, tensorDtype } from "../io/safetensors-types.ts";
import { type TensorPlan, writeShards } from "../io/safetensors-write.ts";
import { configText, parseConfig } from "../models/config.ts";
import { checkpointNames, type LoadedModel, loadModel } from "../models/folder.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { compareLogits, type LogitDifference, probeInputs, probeLogits } from "./verify.ts";

export type StoredDtype = "float32" | "float16" | "bfloat16";

/** Largest allowed max |difference| / max |reference| by the type that weights are rounded to. */
export const mergeTolerance: Readonly<Record<StoredDtype, number>> = {
  float32: 1e-4,
  // A rounded weight is off by 2^-11 and 2^-8 of itself at most; errors add up over the layers.
  float16: 1e-2,
  bfloat16: 5e-2,
};

export interface MergeAdapterOptions {
  /** Type of the weights on disk; "keep" (default) leaves each as the base has it. */
  readonly dtype?: StoredDtype | "keep";
  /** Largest allowed max |difference| / max |reference|; default by the type, `mergeTolerance`. */
  readonly tolerance?: number;
  /** Most bytes of weights in one file; default 5e9. */
  readonly maxShardBytes?: number;
  /** For probe texts; without one only random token ids are tried. */
  readonly tokenizer?: Tokenizer;
  /** Of the random token ids; default 0. */
  readonly seed?: number;
  /** Kinds of adapters that may be read; default LoRA alone. */
  readonly kinds?: readonly AnyAdapterKind[];
}

export interface MergeReport {
  readonly difference: LogitDifference;
  readonly tolerance: number;
  /** Tensors that the adapter changed. */
  readonly changed: readonly string[];
  /** Types of the weights on disk. */
  readonly dtypes: readonly string[];
  /** Names of the files written. */
  readonly files: readonly string[];
  /** Files and folders of the base that were left out: weights without the adapter. */
  readonly leftOut: readonly string[];
}

/** A merge that is verified and not yet written. */
export interface VerifiedMerge {
  readonly difference: LogitDifference;
  readonly tolerance: number;
  readonly changed: readonly string[];
  /** Writes the folder; its config comes last. */
  write(out: string): Promise<MergeReport>;
}

/** The type that a weight is stored as. */
function storedAs(written: string, dtype: StoredDtype | "keep", name: string): StoredDtype {
  if (dtype !== "keep") return dtype;
  const own = tensorDtype.get(written as never);
  if (own === "float32" || own === "float16" || own === "bfloat16") return own;
  throw new UnsupportedError(
    `merge: tensor "${name}" has dtype ${written}, which a merge cannot keep — choose dtype "float32", "float16" or "bfloat16".`,
  );
}

/** How each tensor of the base is written. */
interface Plan extends TensorPlan {
  /** Its new numbers, where it is not copied byte for byte. */
  readonly slot: string | undefined;
}

function planTensors(
  checkpoint: Checkpoint,
  { model, params }: LoadedModel,
  dtype: StoredDtype | "keep",
  changed: ReadonlySet<string>,
): Plan[] {
  const nameOf = checkpointNames(model, new Set(checkpoint.entries.keys()));
  const slotOf = new Map(Object.keys(params).map((slot) => [nameOf(slot), slot]));
  return [...checkpoint.entries.values()].map(({ name, dtype: written, shape }) => {
    const slot = slotOf.get(name);
    const stays = slot === undefined || (!changed.has(slot) && dtype === "keep");
    if (stays) return { name, dtype: written, shape, slot: undefined };
    return { name, dtype: fileDtype[storedAs(written, dtype, name)], shape, slot };
  });
}

/**
 * Merges an adapter folder into a base folder in memory and compares logits.
 * @throws UnsupportedError for an adapter whose effect cannot be written into weights.
 * @throws StateError when the logits are further apart than the tolerance.
 */
export async function verifyMerge(
  files: Files,
  backend: Backend,
  base: LoadedModel,
  loaded: LoadedAdapter,
  options: MergeAdapterOptions = {},
): Promise<VerifiedMerge> {
  const { adapter, params: own, buffers } = loaded;
  const { model, params, path } = base;
  const dtype = options.dtype ?? "keep";
  if (adapter.mergeable === "no") {
    throw new UnsupportedError(
      `merge: a ${adapter.kind} adapter cannot be written into weights — use it beside its base model.`,
    );
  }
  const delta = adapter.merge(params, own, buffers);
  const changed = Object.keys(delta);
  const checkpoint = await openCheckpoint(files, path);
  let plans: Plan[];
  try {
    plans = planTensors(checkpoint, base, dtype, new Set(changed));
  } finally {
    await checkpoint.close();
  }
  const stored: TensorRecord = {};
  const asStored: TensorRecord = { ...params };
  for (const { slot, dtype: written } of plans) {
    if (slot === undefined) continue;
    stored[slot] = (delta[slot] ?? params[slot]!).to(tensorDtype.get(written)!);
    asStored[slot] = stored[slot].to("float32");
  }
  const types = Object.values(stored).map((tensor) => tensor.dtype as StoredDtype);
  const tolerance = options.tolerance ?? Math.max(...types.map((type) => mergeTolerance[type]));
  if (!(tolerance >= 0)) {
    throw new OptionError(`tolerance must be a number from 0, got ${tolerance}.`);
  }
  const ids = probeInputs(model.sizes, options);
  const reference = await probeLogits(backend, model, params, ids, loaded);
  const merged = await probeLogits(backend, model, asStored, ids);
  const difference = compareLogits(reference, merged);
  if (!(difference.maxRelative <= tolerance)) {
    throw new StateError(
      `merge: the merged weights give other logits: max |difference| ${difference.maxAbsolute.toPrecision(3)}, relative ${difference.maxRelative.toPrecision(3)}, allowed is ${tolerance} — nothing was written; store more precisely, or allow more.`,
      { difference, tolerance },
    );
  }
  const write = async (out: string): Promise<MergeReport> => {
    await files.makeDirectory(out);
    const { copied, leftOut } = await copyBeside(files, path, out);
    const source = await openCheckpoint(files, path);
    let written: readonly string[];
    try {
      const slots = new Map(plans.map(({ name, slot }) => [name, slot]));
      written = await writeShards(
        files,
        out,
        plans,
        async ({ name }): Promise<Tensor | Uint8Array> => {
          const slot = slots.get(name);
          return slot === undefined ? source.readBytes(name) : stored[slot]!;
        },
        options.maxShardBytes === undefined ? {} : { maxShardBytes: options.maxShardBytes },
      );
    } finally {
      await source.close();
    }
    await writeConfig(files, path, out, dtype);
    return {
      difference,
      tolerance,
      changed,
      dtypes: [...new Set(plans.map((plan) => plan.dtype))],
      files: [...copied, ...written, "config.json"],
      leftOut,
    };
  };
  return { difference, tolerance, changed, write };
}

/** Files that hold weights in some form, which would be those without the adapter. */
const weightFiles =
  /\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|onnx_data(_\d+)?|tflite)$|\.index\.json$/i;

/** Copies every file beside the weights but config.json; folders stay behind. */
async function copyBeside(
  files: Files,
  from: string,
  to: string,
): Promise<{ copied: string[]; leftOut: string[] }> {
  const copied: string[] = [];
  const leftOut: string[] = [];
  for (const { path, isDirectory } of await files.list(from)) {
    const name = path.split(/[\\/]/).at(-1)!;
    if (
      name === "config.json" ||
      /^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/.test(name)
    ) {
      continue;
    }
    if (isDirectory || weightFiles.test(name) || /\.tmp-\d+/.test(name)) {
      leftOut.push(isDirectory ? `${name}/` : name);
      continue;
    }
    const writer = await files.create(files.join(to, name));
    try {
      for await (const chunk of files.stream(path)) await writer.write(chunk);
      await writer.commit();
    } catch (error) {
      await writer.abort();
      throw error;
    }
    copied.push(name);
  }
  return { copied, leftOut };
}

async function writeConfig(
  files: Files,
  from: string,
  to: string,
  dtype: StoredDtype | "keep",
): Promise<void> {
  const path = files.join(from, "config.json");
  const text = await files.readText(path, 2 ** 20);
  if (dtype === "keep") return files.writeText(files.join(to, "config.json"), text);
  const config = parseConfig(text, path, { asWritten: true });
  // Older configs say torch_dtype; one that says both must not contradict itself.
  const old = config["torch_dtype"] !== undefined;
  const changed = { ...config, ...(old && { torch_dtype: dtype }), dtype };
  return files.writeText(files.join(to, "config.json"), configText(changed));
}

/**
 * Merges an adapter folder into its base and writes a new folder in the Hugging Face layout.
 * @param paths folders: the base model, the adapter, and the one to write
 * @throws MissingError, FormatError when a folder is not what it should be
 * @throws StateError when the logits differ by more than the tolerance; nothing is then written.
 */
export async function mergeAdapter(
  files: Files,
  backend: Backend,
  paths: { readonly model: string; readonly adapter: string; readonly out: string },
  options: MergeAdapterOptions = {},
): Promise<MergeReport> {
  const base = await loadModel(files, paths.model);
  const adapter = await loadAdapter(files, paths.adapter, base.model, options.kinds);
  const merge = await verifyMerge(files, backend, base, adapter, options);
  return merge.write(paths.out);
}
