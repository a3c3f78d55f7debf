/** What a run's folder says of where it came from: settings, model, data, machine. */
import { readFileSync } from "node:fs";
import { arch, cpus, platform, totalmem } from "node:os";
import type { OptionValues } from "./command.ts";
import { finetuneOptions, recordedOptions } from "./finetune-options.ts";
import {
  type Host,
  OptionError,
  type OrtBackend,
  type Run,
  StateError,
  type TensorRecord,
} from "./library.ts";

export function packageVersion(): string {
  const path = new URL("../../package.json", import.meta.url);
  return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version;
}

/** `runs/<date>-<time>`, by the clock. */
export function defaultOut({ clock, files }: Host, prefix = ""): string {
  const stamp = new Date(clock.now()).toISOString().slice(0, 19).replace(/[:T]/g, "-");
  return files.join("runs", prefix + stamp);
}

/** Numbers that change with any exchange of the weights: 64 of each tensor, and their shapes. */
export function fingerprint(params: TensorRecord): string {
  let hash = 0x811c9dc5;
  const view = new DataView(new ArrayBuffer(4));
  const add = (value: number): void => {
    hash = Math.imul(hash ^ value, 0x01000193);
  };
  for (const [name, tensor] of Object.entries(params)) {
    for (let i = 0; i < name.length; i++) add(name.charCodeAt(i));
    for (const size of tensor.shape) add(size);
    const numbers = tensor.numbers();
    const stride = Math.max(1, Math.floor(numbers.length / 64));
    for (let i = 0; i < numbers.length; i += stride) {
      view.setFloat32(0, numbers[i]!);
      add(view.getInt32(0));
    }
  }
  return (hash >>> 0).toString(16).padStart(8, "0");
}

/** What decides a run's bits, beside the package and the machine. */
export interface Origin {
  readonly model: string;
  readonly modelFingerprint: string;
  readonly data: string;
  readonly dataHash: string;
}

/** The contents of run.json. */
export function runRecord(
  options: OptionValues,
  origin: Origin,
  created: number,
): Readonly<Record<string, unknown>> {
  return {
    kind: "finetune",
    created: new Date(created).toISOString(),
    package: packageVersion(),
    options: Object.fromEntries(
      recordedOptions.flatMap((name) =>
        options[name] === undefined ? [] : [[name, options[name]]],
      ),
    ),
    ...origin,
  };
}

/**
 * The options that a run began with, checked as those of a command line are: run.json may be damaged,
 * or of another package.
 */
function recordedIn(run: Run): OptionValues {
  const recorded = run.record["options"];
  if (run.record["kind"] !== "finetune" || typeof recorded !== "object" || recorded === null) {
    throw new StateError(
      `${run.folder}: its run.json is not one of "plasticity finetune" — name the folder of a fine-tuning.`,
    );
  }
  for (const [name, value] of Object.entries(recorded)) {
    const option = recordedOptions.includes(name) ? finetuneOptions[name]! : undefined;
    const wanted =
      option && (option.many ? "object" : option.type === "flag" ? "boolean" : option.type);
    const isList = Array.isArray(value) && value.every((item) => typeof item === "string");
    const isGood =
      wanted === typeof value &&
      (wanted !== "object" || isList) &&
      (typeof value === "object" || option?.check?.(value as string | number) === undefined);
    if (isGood) continue;
    throw new StateError(
      `${run.path("run.json")}: its option ${JSON.stringify(name)} cannot be ${JSON.stringify(value)} — resume with the package that began the run, or begin a new one.`,
      { name, value },
    );
  }
  return recorded as OptionValues;
}

/**
 * The options of a run that goes on: the record's, and those that may differ.
 * @throws OptionError when an option is given that differs from the record.
 */
export function resumedOptions(
  run: Run,
  options: OptionValues,
  given: ReadonlySet<string>,
): OptionValues {
  const recorded = recordedIn(run);
  for (const name of recordedOptions) {
    const [now, began] = [options[name], recorded[name]];
    if (!given.has(name) || JSON.stringify(now) === JSON.stringify(began)) continue;
    throw new OptionError(
      `finetune: --${name} ${began === undefined ? "was not given" : `was ${String(began)}`} when ${run.folder} began, and is ${String(now)} now — leave it out, or begin a new run.`,
    );
  }
  const others = Object.entries(options).filter(([name]) => !recordedOptions.includes(name));
  // A record of an older package lacks options that came later: they are as if not given.
  const defaults = recordedOptions.map((name) => [name, finetuneOptions[name]!.default] as const);
  return { ...Object.fromEntries([...defaults, ...others]), ...recorded };
}

/** @throws StateError when the model or the data is not what the run began with. */
export function checkOrigin(run: Run, origin: Origin): void {
  for (const [field, what, name] of [
    ["modelFingerprint", "the model", origin.model],
    ["dataHash", "the data", origin.data],
  ] as const) {
    if (run.record[field] === origin[field]) continue;
    throw new StateError(
      `${run.folder}: ${what} ${name} is not what it was when the run began — put it back, or begin a new run.`,
      { began: run.record[field], now: origin[field] },
    );
  }
}

/** What a run is on: for environment.json. */
export function environmentOf(
  backend: OrtBackend,
  threads: number,
  now: number,
): Readonly<Record<string, unknown>> {
  return {
    started: new Date(now).toISOString(),
    package: packageVersion(),
    node: process.versions.node,
    engine: `${backend.name} ${backend.binding.version}`,
    threads,
    platform: `${platform()} ${arch()}`,
    processor: cpus()[0]?.model ?? "unknown",
    processors: cpus().length,
    memoryBytes: totalmem(),
  };
}
