/**
 * Shared bases: models that many experiments start from, trained once and kept as model folders under a hash of
 * the code's version, the settings and the data's checksum.
 */
import { FormatError } from "../../errors.ts";
import { isJsonObject, parseJson } from "../../io/json.ts";
import { loadAnyModel, saveModel } from "../../models/folder.ts";
import type { PretrainedModel } from "../../models/model.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { sha256Hex, sorted } from "../cells.ts";
import type { ExperimentContext, Metrics, Settings } from "../experiment.ts";

export interface BaseRequest {
  /** "fashionVit" */
  readonly name: string;
  /** Raised when code changes what training gives. */
  readonly version: string;
  readonly settings: Settings;
  /** Of all that it is trained on. */
  readonly dataChecksum: string;
}

/** What a training gives. */
export interface MadeBase<M extends PretrainedModel> {
  readonly model: M;
  readonly params: TensorRecord;
  readonly metrics: Metrics;
  /** Further files of the folder, as a tokenizer. */
  readonly files?: Readonly<Record<string, string>>;
}

export interface OpenedBase<M extends PretrainedModel> {
  readonly model: M;
  readonly params: TensorRecord;
  readonly metrics: Metrics;
  readonly hash: string;
  readonly folder: string;
}

const metricsFile = "base.json";

/**
 * The base from its folder, or trained now. `config.json` is written last, so that a folder that has it is
 * whole; a training that was stopped begins anew.
 */
export async function openBase<M extends PretrainedModel>(
  context: ExperimentContext,
  { name, version, settings, dataChecksum }: BaseRequest,
  make: () => Promise<MadeBase<M>>,
): Promise<OpenedBase<M>> {
  const { host, basesFolder, signal, budget } = context;
  const { files } = host;
  const key = { name, version, budget, settings: sorted(settings), dataChecksum };
  const hash = sha256Hex(JSON.stringify(key)).slice(0, 16);
  const folder = files.join(basesFolder, `${name}-${hash}`);
  if (!(await files.info(files.join(folder, "config.json")))) {
    context.progress(`training ${name}`);
    const made = await make();
    signal.throwIfAborted();
    const record = { key, metrics: made.metrics };
    await saveModel(files, folder, made.model, made.params, {
      files: { ...made.files, [metricsFile]: `${JSON.stringify(record, null, 2)}\n` },
    });
  }
  // Read even when it was made now, so that every run starts from the numbers on disk.
  const { model, params } = await loadAnyModel(files, folder);
  const path = files.join(folder, metricsFile);
  const json = parseJson(await files.readBytes(path, 2 ** 20), path);
  if (!isJsonObject(json) || !isJsonObject(json["metrics"])) {
    throw new FormatError(`${path}: has no metrics — remove the folder to train it again.`);
  }
  const metrics: Metrics = { ...(json["metrics"] as Metrics) };
  context.recordBase({ name, hash, settings, metrics });
  return { model: model as M, params, metrics, hash, folder };
}
