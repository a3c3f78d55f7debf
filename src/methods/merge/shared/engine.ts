/**
 * The engine of every merge: all models' copies of one tensor in memory, the result written at once, the next
 * one read meanwhile. What was written is read back and tried before config.json makes it a model.
 */
import type { Backend } from "../../../backend/backend.ts";
import { OptionError, StateError } from "../../../errors.ts";
import type { Files } from "../../../host/host.ts";
import { openCheckpoint } from "../../../io/checkpoint.ts";
import { writeShards } from "../../../io/safetensors-write.ts";
import type { AnyMethod } from "../../method.ts";
import { copyFiles } from "./beside.ts";
import { cardOf } from "./card.ts";
import { probeMerged } from "./check.ts";
import type { MergeConfig } from "./config.ts";
import { checksum } from "./convert.ts";
import { type MergePlan, modelsOf, planMerge } from "./plan.ts";
import type { ModelDifference } from "./probe.ts";
import { Scratch } from "./scratch.ts";
import { inputBytes, memoryOf, outputBytes } from "./size.ts";
import { type ModelPaths, openSource, type Source } from "./source.ts";
import { TensorMerger, type WeightDifference } from "./tensor.ts";
import { compareVocabularies } from "./vocabulary.ts";

export interface MergeProgress {
  readonly phase: "merging" | "reading back" | "trying";
  /** Bytes of this phase done, of all; of trying: models. */
  readonly done: number;
  readonly total: number;
  /** Tensor or model at work. */
  readonly name: string;
}

export interface RunMergeOptions {
  /** Of methods that draw random numbers; default 0. */
  readonly seed?: number;
  /** Most bytes of weights in one file; default 5e9. */
  readonly maxShardBytes?: number;
  /** Tries the merged model and the others on probe inputs; without one that is left out. */
  readonly backend?: Backend;
  /** Bytes that trying may take; a model that needs more is not tried. Default: no limit. */
  readonly probeBytes?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: MergeProgress) => void;
  /** Milliseconds from an arbitrary start, for the report's seconds. */
  readonly monotonic?: () => number;
}

export interface MergedReport {
  readonly method: string;
  readonly models: readonly string[];
  readonly tensors: number;
  readonly parameters: number;
  /** Types of the weights on disk. */
  readonly dtypes: readonly string[];
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** Reading, merging and writing, without what comes after. */
  readonly seconds: number;
  readonly checkSeconds: number;
  readonly probeSeconds: number;
  /** Every input was the same number for number. */
  readonly areInputsEqual: boolean;
  readonly weights: readonly WeightDifference[];
  /** Of every model; empty where nothing was tried. */
  readonly outputs: readonly ModelDifference[];
  /** Why nothing was tried. */
  readonly notTried?: string;
  readonly warnings: readonly string[];
  readonly files: readonly string[];
  readonly leftOut: readonly string[];
}

/** Models opened and fitted together; nothing is written yet. */
export interface OpenedMerge {
  readonly plan: MergePlan;
  readonly labels: readonly string[];
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** Most bytes of tensors in memory at once, without trying. */
  readonly memory: number;
  /** Bytes that trying takes; undefined where the architecture is not known. */
  readonly probeMemory: number | undefined;
  /** Paths of the files that hold the models' weights. */
  files(): Promise<readonly string[]>;
  /** Merges some tensors without writing them, for an estimate: seconds and the bytes read in them. */
  rehearse(
    seconds: number,
    monotonic: () => number,
  ): Promise<{ readonly seconds: number; readonly bytes: number }>;
  /**
   * Writes the merged model into a folder, which must not hold one; checks it; config.json comes last.
   * @throws StateError when what was written is not what was merged, or does not work; what was written is
   * removed.
   */
  run(out: string, options?: RunMergeOptions): Promise<MergedReport>;
  close(): Promise<void>;
}

/** A folder, and the LoRA on it, by a name as mergekit writes it. */
export type ResolveModel = (name: string) => Promise<ModelPaths>;

/**
 * What `folder` and `folder+adapter` mean: a folder of the whole name counts first.
 * @param locate the folder that one part of the name stands for; default itself
 */
export function resolveFolders(
  files: Files,
  locate: (name: string) => Promise<string> = async (name) => name,
): ResolveModel {
  return async (name) => {
    if (await files.info(name)) return { model: name };
    const at = name.lastIndexOf("+");
    if (at <= 0 || at === name.length - 1) return { model: await locate(name) };
    return {
      model: await locate(name.slice(0, at)),
      adapter: await locate(name.slice(at + 1)),
    };
  };
}

/**
 * Opens the models of a configuration and plans the merge.
 * @param methods those that may be named
 * @throws OptionError for an unknown method or options that do not fit; MissingError, FormatError, ShapeError
 * naming the model and tensor that does not.
 */
export async function openMerge(
  files: Files,
  config: MergeConfig,
  methods: readonly AnyMethod[],
  resolve: ResolveModel = resolveFolders(files),
): Promise<OpenedMerge> {
  const method = methods.find(({ id }) => id === config.method);
  if (!method?.roles.merge) {
    throw new OptionError(
      `merge: the method "${config.method}" is not known — known are ${methods.map(({ id }) => id).join(", ")}.`,
    );
  }
  const labels = modelsOf(config);
  const sources: Source[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(sources.map((source) => source.close()));
  };
  try {
    for (const label of labels) sources.push(await openSource(files, label, await resolve(label)));
    const plan = planMerge(config, method, sources);
    const home = sources[plan.home];
    const { tokenizerSource } = config;
    const tokens =
      tokenizerSource === undefined
        ? home.path
        : (sources.find(({ label }) => label === tokenizerSource)?.path ??
          (await resolve(tokenizerSource)).model);
    const shown = { label: tokenizerSource ?? home.label, path: tokens };
    const warnings = [
      ...plan.warnings,
      ...(await compareVocabularies(files, method.id, shown, sources)),
    ];
    const probed = home.model && memoryOf.probe(home.model);
    return {
      plan: { ...plan, warnings },
      labels,
      bytesRead: inputBytes(plan, sources),
      bytesWritten: outputBytes(plan),
      memory: memoryOf.merge(plan, sources),
      probeMemory: probed,
      files: async () => (await Promise.all(sources.map((source) => source.files()))).flat(),
      rehearse: (seconds, monotonic) => rehearse(plan, sources, seconds, monotonic),
      run: (out, options = {}) =>
        run(files, { ...plan, warnings }, config, sources, tokens, out, options),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function rehearse(
  plan: MergePlan,
  sources: readonly Source[],
  seconds: number,
  monotonic: () => number,
): Promise<{ seconds: number; bytes: number }> {
  const merger = new TensorMerger(plan, sources, 0, new Scratch());
  const start = monotonic();
  let bytes = 0;
  // From the middle, where layers are.
  const from = Math.floor(plan.tensors.length / 2);
  for (let i = 0; i < plan.tensors.length; i++) {
    const tensor = plan.tensors[(from + i) % plan.tensors.length];
    await merger.bytesOf(tensor);
    bytes += merger.inputBytesOf(tensor);
    if (monotonic() - start > 1000 * seconds) break;
  }
  return { seconds: (monotonic() - start) / 1000, bytes };
}

const stopped = (name: string): StateError =>
  new StateError(`merge: stopped at "${name}"; nothing was kept.`);

/** Tensors below this are read and merged while the one before is written. */
const aheadBytes = 64e6;

async function run(
  files: Files,
  plan: MergePlan,
  config: MergeConfig,
  sources: readonly Source[],
  tokens: string,
  out: string,
  options: RunMergeOptions,
): Promise<MergedReport> {
  const { signal, monotonic = () => 0, onProgress = () => {} } = options;
  const existing = await files.info(out);
  if (existing && (!existing.isDirectory || (await files.list(out)).length > 0)) {
    throw new OptionError(`merge: "${out}" exists already — name a new folder.`);
  }
  const { id } = plan.method;
  const merger = new TensorMerger(plan, sources, options.seed ?? 0, new Scratch());
  const byName = new Map(plan.tensors.map((tensor, i) => [tensor.name, i]));
  const total = inputBytes(plan, sources);
  const sums = new Map<string, string>();
  let done = 0;
  await files.makeDirectory(out);
  try {
    const start = monotonic();
    const ahead = new Map<number, Promise<Uint8Array>>();
    const produce = (i: number): Promise<Uint8Array> => {
      const work = merger.bytesOf(plan.tensors[i]);
      // A failure is met where the result is awaited.
      work.catch(() => {});
      ahead.set(i, work);
      return work;
    };
    const written = await writeShards(
      files,
      out,
      plan.tensors,
      async ({ name }) => {
        if (signal?.aborted) throw stopped(name);
        const i = byName.get(name)!;
        const work = ahead.get(i) ?? produce(i);
        const next = plan.tensors[i + 1];
        const isSmall = (k: number): boolean => merger.inputBytesOf(plan.tensors[k]) < aheadBytes;
        if (next && isSmall(i) && isSmall(i + 1) && !ahead.has(i + 1)) void produce(i + 1);
        const bytes = await work;
        ahead.delete(i);
        sums.set(name, checksum(bytes));
        done += merger.inputBytesOf(plan.tensors[i]);
        onProgress({ phase: "merging", done, total, name });
        return bytes;
      },
      options.maxShardBytes === undefined ? {} : { maxShardBytes: options.maxShardBytes },
    );
    const { copied, leftOut } = await copyFiles(files, sources[plan.home].path, tokens, out);
    await files.writeText(files.join(out, "README.md"), cardOf(config, plan, sources));
    const merged = monotonic();
    const bytesWritten = await readBack(files, id, out, sums, onProgress, signal);
    const checked = monotonic();
    const text = `${JSON.stringify(plan.config, null, 2)}\n`;
    const areInputsEqual = merger.areInputsEqual();
    const { outputs, notTried } = await probeMerged(files, plan, sources, out, text, {
      ...options,
      areInputsEqual,
    });
    const tried = monotonic();
    await files.writeText(files.join(out, "config.json"), text);
    return {
      method: id,
      models: sources.map(({ label }) => label),
      tensors: plan.tensors.length,
      parameters: plan.tensors.reduce(
        (sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1),
        0,
      ),
      dtypes: [...new Set(plan.tensors.map(({ dtype }) => dtype))],
      bytesRead: total,
      bytesWritten,
      seconds: (merged - start) / 1000,
      checkSeconds: (checked - merged) / 1000,
      probeSeconds: (tried - checked) / 1000,
      areInputsEqual,
      weights: merger.differences(),
      outputs,
      ...(notTried !== undefined && { notTried }),
      warnings: [...plan.warnings, ...merger.warnings()],
      files: [...copied, "README.md", ...written, "config.json"],
      leftOut,
    };
  } catch (error) {
    await files.remove(out).catch(() => undefined);
    throw error;
  }
}

/**
 * Reads every tensor again and compares its checksum with that of the numbers that were merged.
 * @returns bytes of all tensors
 */
async function readBack(
  files: Files,
  where: string,
  out: string,
  sums: ReadonlyMap<string, string>,
  onProgress: (progress: MergeProgress) => void,
  signal: AbortSignal | undefined,
): Promise<number> {
  const checkpoint = await openCheckpoint(files, out);
  try {
    const entries = [...checkpoint.entries.values()];
    const total = entries.reduce((sum, { bytes }) => sum + bytes, 0);
    let done = 0;
    for (const { name, bytes } of entries) {
      if (signal?.aborted) throw stopped(name);
      if (checksum(await checkpoint.readBytes(name)) !== sums.get(name)) {
        throw new StateError(
          `${where}: tensor "${name}" reads back as other bytes than were written — the disk is at fault; nothing was kept.`,
        );
      }
      done += bytes;
      onProgress({ phase: "reading back", done, total, name });
    }
    if (entries.length !== sums.size) {
      throw new StateError(
        `${where}: ${entries.length} tensors read back of ${sums.size} written — nothing was kept.`,
      );
    }
    return total;
  } finally {
    await checkpoint.close();
  }
}
