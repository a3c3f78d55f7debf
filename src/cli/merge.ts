/** `plasticity merge`: several models of one architecture into one, checked before it has its name. */
import { type Command, type CommandContext, oneOf, realFrom, wholeFrom } from "./command.ts";
import { downloadShown } from "./download.ts";
import { memoryLimit } from "./estimate.ts";
import {
  type MergedReport,
  type MergeProgress,
  mergeMethods,
  type OpenedMerge,
  OptionError,
  openMerge,
  parseHubId,
  resolveFolders,
} from "./library.ts";
import { mergeConfigOf } from "./merge-config.ts";
import { type CopyRate, copyRate, dropCaches, freeBytes, writeSeconds } from "./merge-measure.ts";
import { modelFolder, openBackend, threadsOption } from "./models.ts";
import { checkNew, writeFolder } from "./new-folder.ts";
import { type Output, showBytes, showCount, showTime } from "./output.ts";

/** Bytes that are copied for a rate, where not all are. */
const sampleBytes = 256e6;

/** Folders by name: what is here, the model in this package, or a name on the hub, which is fetched. */
function locate({ host, output, signal }: CommandContext): (name: string) => Promise<string> {
  return async (name) => {
    if (name === "builtin") return modelFolder(name);
    if ((await host.files.info(name)) || !name.includes("/") || !parseHubId(name)) return name;
    return (await downloadShown(host, output, name, { signal })).path;
  };
}

/** @throws OptionError when the merge needs more memory or room than there is. */
async function refuseWhatDoesNotFit(merge: OpenedMerge, out: string): Promise<void> {
  const limit = memoryLimit({});
  if (merge.memory > limit) {
    throw new OptionError(
      `merge: the largest tensor needs about ${showBytes(merge.memory)} of memory in all models together, ${showBytes(limit)} may be taken — merge fewer models at once, or on a machine with more memory.`,
    );
  }
  const free = await freeBytes(out);
  if (free === undefined || merge.bytesWritten < free) return;
  throw new OptionError(
    `merge: the merged model takes ${showBytes(merge.bytesWritten)}, ${showBytes(free)} are free where ${out} would lie — make room, choose another disk, or a smaller type (--dtype bfloat16).`,
  );
}

function progressOf(output: Output, monotonic: () => number): (progress: MergeProgress) => void {
  let [phase, started, drawn, quarter] = ["", 0, 0, 0];
  return ({ phase: now, done, total, name }) => {
    const time = monotonic();
    if (now !== phase) [phase, started, drawn, quarter] = [now, time, -1e9, 0];
    const share = total === 0 ? 1 : done / total;
    const at = Math.floor(4 * share);
    const isMilestone = at > quarter && now !== "trying";
    if (!isMilestone && time - drawn < 100) return;
    [drawn, quarter] = [time, Math.max(quarter, at)];
    const seconds = (time - started) / 1000;
    const left = done > 0 ? (seconds * (total - done)) / done : undefined;
    const amount =
      now === "trying"
        ? ""
        : `  ${Math.floor(100 * share)} %  ${showBytes(done)} of ${showBytes(total)}`;
    const rest = now === "trying" || left === undefined ? "" : `  ${showTime(left)} left`;
    output.progress(`${now}${amount}${rest}  ${name}`, isMilestone);
  };
}

/** `--dry-run`: what would be read and written, memory and time. */
async function showPlan(
  { host, output }: CommandContext,
  merge: OpenedMerge,
  out: string,
): Promise<void> {
  const { monotonic } = host.clock;
  output.progress("Rehearsing some tensors ...", true);
  const { bytes, seconds } = await merge.rehearse(2, monotonic);
  const written = Math.min(merge.bytesWritten, 64e6);
  const writing = (await writeSeconds(out, written, monotonic)) ?? 0;
  const total =
    (seconds * merge.bytesRead) / Math.max(1, bytes) +
    (writing * merge.bytesWritten) / Math.max(1, written);
  const { plan, labels, memory, probeMemory } = merge;
  const free = await freeBytes(out);
  output.table(
    ["a dry run of", ""],
    [
      ["method", plan.method.title],
      ["models", labels.join(", ")],
      ["tensors", String(plan.tensors.length)],
      ["read", showBytes(merge.bytesRead)],
      [
        "written",
        `${showBytes(merge.bytesWritten)}${free === undefined ? "" : `, ${showBytes(free)} are free`}`,
      ],
      [
        "memory for merging",
        `${showBytes(memory)} of tensors, ${showBytes(memoryLimit({}))} may be taken`,
      ],
      [
        "memory for trying",
        probeMemory === undefined ? "not tried: unknown architecture" : showBytes(probeMemory),
      ],
      ["time", `about ${showTime(total)}, without checking`],
    ],
  );
  for (const warning of plan.warnings) output.warn(`Note: ${warning}`);
  output.json({
    dryRun: true,
    method: plan.method.id,
    models: labels,
    tensors: plan.tensors.length,
    bytesRead: merge.bytesRead,
    bytesWritten: merge.bytesWritten,
    memoryBytes: memory,
    probeBytes: probeMemory ?? null,
    seconds: total,
    warnings: plan.warnings,
  });
}

function showReport(output: Output, out: string, report: MergedReport): void {
  output.line(
    `Wrote ${out}: ${report.tensors} tensors, ${showCount(report.parameters)} numbers as ${report.dtypes.join(", ")}; read back, and every one is finite and as merged.`,
  );
  output.line();
  const tried = new Map(report.outputs.map((one) => [one.model, one]));
  output.table(
    ["merged against", "weights apart", "outputs apart", "same likeliest"],
    report.weights.map(({ model, relative }) => {
      const one = tried.get(model);
      return [
        model,
        relative.toExponential(2),
        one ? one.maxRelative.toExponential(2) : "",
        one ? `${(100 * one.sameTop).toFixed(1)} %` : "",
      ];
    }),
    ["left", "right", "right", "right"],
  );
  output.line();
  if (report.notTried) output.warn(`The merged model was not tried: ${report.notTried}.`);
  else output.line("The merged model loads, and its outputs on the probe inputs are finite.");
  if (report.areInputsEqual) output.line("All models were the same, number for number.");
  if (report.leftOut.length > 0) output.line(`Left out: ${report.leftOut.join(", ")}`);
}

interface Measured {
  readonly mergeRate: number;
  readonly copy?: CopyRate & { readonly rate: number; readonly areCachesDropped: boolean };
}

function showRate(output: Output, report: MergedReport, measured: Measured): void {
  const { mergeRate, copy } = measured;
  output.line(
    `Merged ${showBytes(report.bytesRead)} into ${showBytes(report.bytesWritten)} in ${report.seconds.toFixed(1)} s: ${showBytes(mergeRate)}/s read and written; checked in ${report.checkSeconds.toFixed(1)} s, tried in ${report.probeSeconds.toFixed(1)} s.`,
  );
  if (!copy) return;
  const how = copy.areCachesDropped
    ? "file caches dropped before both"
    : "files perhaps cached by the system, caches not dropped";
  output.line(
    `Copying ${showBytes(copy.bytes)} of them here: ${showBytes(copy.rate)}/s (${how}); the merge ran at ${(100 * (mergeRate / copy.rate)).toFixed(0)} % of that.`,
  );
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  const out = options["out"] as string | undefined;
  const isDry = options["dry-run"] === true;
  if (out === undefined && !isDry) {
    throw new OptionError("merge: --out is missing — name the folder to write.");
  }
  const target = out ?? "merged";
  if (!isDry) checkNew("merge", target);
  const { monotonic } = host.clock;
  const config = await mergeConfigOf(context);
  const resolve = resolveFolders(host.files, locate(context));
  const merge = await openMerge(host.files, config, mergeMethods, resolve);
  try {
    if (isDry) return await showPlan(context, merge, target);
    await refuseWhatDoesNotFit(merge, target);
    for (const warning of merge.plan.warnings) output.warn(`Note: ${warning}`);
    const measure = options["measure"] as string;
    const isFull = measure === "full";
    const isDropped = isFull && (await dropCaches());
    const backend =
      options["no-probe"] === true
        ? undefined
        : await openBackend(output, options["threads"] as number | undefined);
    const shards = options["max-shard-bytes"] as number | undefined;
    const report = await writeFolder(target, (temporary) =>
      merge.run(temporary, {
        seed: options["seed"] as number,
        probeBytes: memoryLimit({}),
        signal,
        monotonic,
        onProgress: progressOf(output, monotonic),
        ...(backend && { backend }),
        ...(shards !== undefined && { maxShardBytes: shards }),
      }),
    );
    showReport(output, target, report);
    const mergeRate = (report.bytesRead + report.bytesWritten) / Math.max(1e-3, report.seconds);
    let measured: Measured = { mergeRate };
    if (measure !== "none") {
      if (isFull) await dropCaches();
      output.progress("copying the same bytes, for comparison");
      const bytes = isFull ? merge.bytesRead : Math.min(merge.bytesRead, sampleBytes);
      const copy = await copyRate(
        await merge.files(),
        target,
        bytes,
        report.bytesWritten / report.bytesRead,
        monotonic,
      );
      const rate = copy.bytes / Math.max(1e-3, copy.seconds);
      measured = { mergeRate, copy: { ...copy, rate, areCachesDropped: isDropped } };
    }
    showRate(output, report, measured);
    output.json({ out: target, ...report, ...measured });
  } catch (error) {
    if (!signal.aborted) throw error;
    output.warn("Stopped; nothing was written.");
    process.exitCode = 130;
  } finally {
    await merge.close();
  }
}

export const mergeCommand: Command = {
  name: "merge",
  summary: "merge several models into one, by mergekit's configuration or by options",
  usage:
    "plasticity merge <config.yml> --out <folder>\n       plasticity merge --method <id> [--base <folder>] --models <folder> ... --out <folder>",
  example: "plasticity merge --method ties --base base --models a b --set density=0.2 --out merged",
  maxPositionals: 64,
  options: {
    method: {
      type: "string",
      value: "id",
      about: `one of ${mergeMethods.map(({ id }) => id).join(", ")}`,
    },
    base: { type: "string", value: "folder", about: "the model that the others were trained from" },
    models: {
      type: "string",
      value: "folder",
      many: true,
      about: "the models, one word each; folder+adapter writes a LoRA in on the way",
    },
    set: {
      type: "string",
      value: "name=value",
      many: true,
      about: "an option of the method, as density=0.2; weight=0.7+0.3 gives each model its own",
    },
    out: { type: "string", value: "folder", about: "the folder to write; it must not exist" },
    dtype: {
      type: "string",
      default: "keep",
      about:
        "type of the weights on disk: keep (as the base has them), float32, float16 or bfloat16",
      check: oneOf("keep", "float32", "float16", "bfloat16"),
    },
    "dry-run": { type: "flag", about: "say what would be read and written, memory and time" },
    seed: {
      type: "number",
      default: 0,
      about: "of methods that draw random numbers",
      check: wholeFrom(0, 2 ** 53 - 1),
    },
    "max-shard-bytes": {
      type: "number",
      about: "most bytes of weights in one file (default 5e9)",
      check: realFrom(1, 1e15),
    },
    "no-probe": {
      type: "flag",
      about: "do not run the merged model; files are read back all the same",
    },
    measure: {
      type: "string",
      default: "sample",
      about:
        "hold the rate against copying: sample (256 MB), full (all bytes, file caches dropped where root may) or none",
      check: oneOf("sample", "full", "none"),
    },
    threads: threadsOption,
  },
  run,
};
