/** What an experiment is given while it runs: engine, data, kept tensors, and a record of what was used. */
import type { Backend } from "../backend/backend.ts";
import { OptionError, StateError } from "../errors.ts";
import { SafetensorsFile } from "../io/safetensors.ts";
import { writeSafetensors } from "../io/safetensors-write.ts";
import type { TensorRecord } from "../nn/module.ts";
import { sha256Hex, sorted } from "./cells.ts";
import type { BaseRecord, DataRecord, ExperimentContext, Settings } from "./experiment.ts";
import type { ReproduceOptions } from "./run.ts";

/** Makes the context of one run and keeps its records. */
export class Scene {
  readonly data: DataRecord[] = [];
  readonly bases: BaseRecord[] = [];
  readonly #options: ReproduceOptions;
  readonly #folder: string;
  readonly #progress: (note: string) => void;
  #context: ExperimentContext | undefined;
  /** Set when `open` of the experiment is over. */
  #inputs: string | undefined;

  constructor(options: ReproduceOptions, folder: string, progress: (note: string) => void) {
    this.#options = options;
    this.#folder = folder;
    this.#progress = progress;
  }

  get context(): ExperimentContext {
    if (this.#context) return this.#context;
    throw new StateError("reproduce: the context is not open yet.");
  }

  async open(openBackend: () => Promise<Backend>): Promise<ExperimentContext> {
    const { host, budget, packages, signal = new AbortController().signal } = this.#options;
    this.#context = {
      host,
      budget,
      packages,
      signal,
      backend: await openBackend(),
      progress: this.#progress,
      recordData: (record) => this.#record(this.data, record),
      recordBase: (record) => this.#record(this.bases, record),
      remember: (key, make) => this.#remember(key, make),
      basesFolder: host.files.join(packages.cacheFolder, "bases"),
    };
    return this.#context;
  }

  #record<R extends { readonly name: string }>(list: R[], record: R): void {
    if (this.#inputs !== undefined) {
      throw new OptionError(
        `reproduce: "${record.name}" was opened in a cell — open data and bases in the experiment's open.`,
      );
    }
    const text = JSON.stringify(record);
    if (!list.some((other) => JSON.stringify(other) === text)) list.push(record);
  }

  /** Ends the opening; returns a hash of all that was opened. */
  close(): string {
    const names = [
      ...this.data.map(({ name, checksum }) => [name, checksum]),
      ...this.bases.map(({ name, hash }) => [name, hash]),
    ];
    this.#inputs = sha256Hex(JSON.stringify(names.sort()));
    return this.#inputs;
  }

  async #remember(key: Settings, make: () => Promise<TensorRecord>): Promise<TensorRecord> {
    const { host, experiment, budget, signal } = this.#options;
    const { files } = host;
    const { id, version } = experiment;
    const name = sha256Hex(JSON.stringify([id, version, budget, this.#inputs ?? "", sorted(key)]));
    const path = files.join(this.#folder, "kept", budget, `${name}.safetensors`);
    if (await files.info(path)) return readTensors(files, path);
    const tensors = await make();
    // What a stopped training gives is not what was asked for.
    signal?.throwIfAborted();
    await writeSafetensors(files, path, Object.entries(tensors), {});
    return tensors;
  }
}

async function readTensors(
  files: ReproduceOptions["host"]["files"],
  path: string,
): Promise<TensorRecord> {
  const file = await SafetensorsFile.open(files, path);
  try {
    const tensors: TensorRecord = {};
    for (const name of file.entries.keys()) tensors[name] = await file.read(name);
    return tensors;
  } finally {
    await file.close();
  }
}
