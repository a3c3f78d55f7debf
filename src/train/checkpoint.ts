/**
 * A run's checkpoint: one safetensors file with the trained parameters, the optimiser's state and,
 * in its metadata, where the run stood. One file is written whole or not at all.
 */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { crc32c } from "../io/crc32c.ts";
import { isJsonObject, parseJson } from "../io/json.ts";
import { SafetensorsFile, writeSafetensors } from "../io/safetensors.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Where a run stands: everything random and every position in the data follows from the step. */
export interface RunState {
  /** Trained parameters, by path. */
  readonly params: Readonly<Record<string, Tensor>>;
  /** The optimiser's: updates made, and its tensors by `<path>.<slot>`. */
  readonly optimizer: {
    readonly step: number;
    readonly tensors: Readonly<Record<string, Tensor>>;
    /** Updates made before it was made to forget; default 0. */
    readonly origin?: number;
  };
  /** What hooks changed, by name; default nothing. */
  readonly buffers?: Readonly<Record<string, Tensor>>;
}

export interface SavedState extends RunState {
  /** What the writer wanted to know again, as JSON. */
  readonly notes: Readonly<Record<string, unknown>>;
}

const format = "plasticity checkpoint";
const version = "1";
const maxNotes = 2 ** 20;

const [paramPrefix, statePrefix, bufferPrefix] = ["param/", "optimizer/", "buffer/"] as const;

/** The sum of all numbers' bytes, in the order of their names. */
function sumOf(entries: readonly (readonly [name: string, tensor: Tensor])[]): string {
  let sum = 0;
  for (const [name, { data }] of [...entries].sort(([a], [b]) => (a < b ? -1 : 1))) {
    sum = crc32c(new TextEncoder().encode(name), sum);
    sum = crc32c(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), sum);
  }
  return sum.toString(16).padStart(8, "0");
}

/** Writes to a temporary file, syncs, renames. */
export async function saveState(
  files: Files,
  path: string,
  { params, optimizer, buffers = {} }: RunState,
  notes: Readonly<Record<string, unknown>> = {},
): Promise<void> {
  const entries = [
    ...Object.entries(params).map(([name, tensor]) => [paramPrefix + name, tensor] as const),
    ...Object.entries(optimizer.tensors).map(
      ([name, tensor]) => [statePrefix + name, tensor] as const,
    ),
    ...Object.entries(buffers).map(([name, tensor]) => [bufferPrefix + name, tensor] as const),
  ];
  await writeSafetensors(files, path, entries, {
    format,
    version,
    step: String(optimizer.step),
    ...(optimizer.origin && { origin: String(optimizer.origin) }),
    crc32c: sumOf(entries),
    notes: JSON.stringify(notes),
  });
}

/**
 * Reads what `saveState` wrote.
 * @throws FormatError when the file is damaged or no checkpoint.
 */
export async function loadState(files: Files, path: string): Promise<SavedState> {
  const file = await SafetensorsFile.open(files, path);
  try {
    const { metadata } = file;
    const wrong = (what: string): FormatError => new FormatError(`${path}: ${what}`, { path });
    if (metadata["format"] !== format) throw wrong("is not a checkpoint of a run.");
    if (metadata["version"] !== version) {
      throw wrong(
        `is a checkpoint of version ${JSON.stringify(metadata["version"] ?? null)}, this package reads version ${version} — resume with the package that wrote it.`,
      );
    }
    const step = Number(metadata["step"]);
    if (!/^\d{1,15}$/.test(metadata["step"] ?? "")) {
      throw wrong(`step must be a whole number, got ${JSON.stringify(metadata["step"] ?? null)}.`);
    }
    const origin = Number(metadata["origin"] ?? 0);
    if (!/^\d{1,15}$/.test(metadata["origin"] ?? "0") || origin > step) {
      throw wrong(
        `origin must be a whole number up to its step, got ${JSON.stringify(metadata["origin"])}.`,
      );
    }
    const bytes = new TextEncoder().encode(metadata["notes"] ?? "{}");
    const notes = parseJson(bytes, `${path}: notes`, { maxBytes: maxNotes });
    if (!isJsonObject(notes)) throw wrong("its notes must be an object.");
    const params: Record<string, Tensor> = {};
    const tensors: Record<string, Tensor> = {};
    const buffers: Record<string, Tensor> = {};
    for (const name of file.entries.keys()) {
      if (name.startsWith(paramPrefix)) {
        params[name.slice(paramPrefix.length)] = await file.read(name);
      } else if (name.startsWith(statePrefix)) {
        tensors[name.slice(statePrefix.length)] = await file.read(name);
      } else if (name.startsWith(bufferPrefix)) {
        buffers[name.slice(bufferPrefix.length)] = await file.read(name);
      } else throw wrong(`has the tensor ${JSON.stringify(name)}, which no checkpoint has.`);
    }
    const all = [
      ...Object.entries(params).map(([name, tensor]) => [paramPrefix + name, tensor] as const),
      ...Object.entries(tensors).map(([name, tensor]) => [statePrefix + name, tensor] as const),
      ...Object.entries(buffers).map(([name, tensor]) => [bufferPrefix + name, tensor] as const),
    ];
    if (sumOf(all) !== metadata["crc32c"]) {
      throw wrong("its numbers do not match its sum — the file is damaged.");
    }
    return { params, optimizer: { step, origin, tensors }, buffers, notes };
  } finally {
    await file.close();
  }
}
