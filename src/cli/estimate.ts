/** What a fine-tuning will take, and a refusal of what does not fit that says what would. */
import { freemem } from "node:os";
import type { OptionValues } from "./command.ts";
import {
  type Adapter,
  type AnyExampleSet,
  estimateMemory,
  estimatePolicy,
  estimatePolicyMemory,
  estimateRun,
  type FinetuneOptions,
  type Host,
  type MemoryEstimate,
  OptionError,
  type OrtBackend,
  type PolicyOptions,
  type PolicyPrompt,
  type TensorRecord,
  type Trainee,
} from "./library.ts";
import { type Output, showBytes, showCount, showTime } from "./output.ts";

/** What is weighed: a job of `finetune`, or one of its tasks. */
export interface Weighed {
  readonly trainee: Parameters<typeof estimateMemory>[0];
  readonly data: { readonly train: AnyExampleSet; readonly heldOut: AnyExampleSet };
  readonly backend: OrtBackend;
  readonly settings: FinetuneOptions;
  readonly adapter: Adapter | undefined;
  readonly opened: { readonly params: TensorRecord };
  /** Prompts that are answered before and after. */
  readonly questions: readonly unknown[];
  /** Of a training on own answers. */
  readonly policy?:
    | { readonly prompts: readonly PolicyPrompt[]; readonly options: PolicyOptions }
    | undefined;
}

/** The settings of a training on own answers with some changed: its parts are answers. */
function policyWith(
  { policy, settings }: Weighed,
  { accumulate, ...changed }: Partial<FinetuneOptions>,
): PolicyOptions {
  const parts =
    accumulate === undefined
      ? {}
      : { partSize: Math.ceil((settings.batchSize ?? 16) / accumulate) };
  const { packing: _, onStep: _on, ...others } = changed;
  return { ...policy!.options, ...others, ...parts };
}

/** Bytes that this process may take in all: what it has, and what the machine has left. */
export function memoryLimit(options: OptionValues): number {
  const asked = options["memory-limit"] as number | undefined;
  if (asked !== undefined) return asked * 1e9;
  const { rss } = process.memoryUsage();
  // Inside a container less may be allowed than the machine has.
  const allowed = process.constrainedMemory?.() ?? 0;
  const machine = freemem() + rss;
  return allowed > 0 && allowed < 2 ** 60 ? Math.min(allowed, machine) : machine;
}

function bytesOf(params: TensorRecord): number {
  return Object.values(params).reduce((sum, { data }) => sum + data.byteLength, 0);
}

/** Answering keeps the base once more, as the engine wants it, and reads it from a model file. */
function answeringBytes(job: Weighed): number {
  return job.questions.length === 0 ? 0 : 3 * bytesOf(job.opened.params);
}

/** Training or answering, whichever takes more. */
export function withAnswers(job: Weighed, memory: MemoryEstimate): number {
  const training = memory.totalBytes;
  return Math.max(training, memory.residentBytes + answeringBytes(job));
}

async function memoryWith(job: Weighed, changed: Partial<FinetuneOptions>): Promise<number> {
  const { trainee, data, backend, settings } = job;
  const { rss } = process.memoryUsage();
  if (job.policy) {
    const options = policyWith(job, changed);
    const base = trainee as Trainee;
    return withAnswers(job, estimatePolicyMemory(base, job.policy.prompts, backend, options, rss));
  }
  const options = { ...settings, ...changed };
  const memory = await estimateMemory(trainee, data.train, backend, options, rss, data.heldOut);
  return withAnswers(job, memory);
}

/** Changes that cost less memory, the mildest first. */
async function* lighter(
  job: Weighed,
): AsyncGenerator<{ readonly options: string; readonly bytes: number }> {
  const { settings } = job;
  const { batchSize = 16, accumulate = 1 } = settings;
  const parts: number[] = [];
  for (let n = 2 * accumulate; n <= batchSize; n *= 2) if (batchSize % n === 0) parts.push(n);
  for (const n of parts) {
    yield { options: `--accumulate ${n}`, bytes: await memoryWith(job, { accumulate: n }) };
  }
  const last = parts.at(-1) ?? accumulate;
  const both = { checkpoint: true, accumulate: last };
  yield {
    options: `--gradient-checkpointing --accumulate ${last}`,
    bytes: await memoryWith(job, both),
  };
  if (settings.optimizer !== "sgd" && !job.adapter) {
    yield {
      options: `--gradient-checkpointing --accumulate ${last} --optimizer sgd`,
      bytes: await memoryWith(job, { ...both, optimizer: "sgd" }),
    };
  }
}

/**
 * @throws OptionError when the training needs more memory than there is; it says what would fit.
 */
export async function refuseWhatDoesNotFit(job: Weighed, options: OptionValues): Promise<void> {
  const limit = memoryLimit(options);
  const needed = await memoryWith(job, {});
  if (needed <= limit) return;
  let fits: string | undefined;
  let least = needed;
  for await (const { options: changed, bytes } of lighter(job)) {
    least = Math.min(least, bytes);
    if (bytes > limit) continue;
    fits = `${changed} it takes ${showBytes(bytes)}`;
    break;
  }
  const advice = fits
    ? `with ${fits}`
    : job.adapter
      ? `no setting here brings it below ${showBytes(least)}: take a smaller model, shorter examples (--max-length), or a machine with more memory`
      : `no setting here brings it below ${showBytes(least)}: train an adapter (--adapter lora) in place of all parameters`;
  throw new OptionError(
    `finetune: needs about ${showBytes(needed)} of memory, ${showBytes(limit)} may be taken — ${advice}.`,
    { needed, limit },
  );
}

/** `--dry-run`: rehearses some steps and says what all of them will take. */
export async function showEstimate(
  output: Output,
  host: Host,
  job: Weighed,
  options: OptionValues,
): Promise<void> {
  const { trainee, data, backend, settings } = job;
  const limit = memoryLimit(options);
  const { rss } = process.memoryUsage();
  output.progress("Rehearsing some steps ...", true);
  const how = { clock: host.clock, residentBytes: rss };
  const played =
    job.policy &&
    (await estimatePolicy(
      trainee as Trainee,
      job.policy.prompts,
      backend,
      policyWith(job, {}),
      how,
    ));
  const estimate =
    played ??
    (await estimateRun(trainee, data.train, backend, settings, { ...how, heldOut: data.heldOut }));
  const bytes = withAnswers(job, estimate.memory);
  const trained = Object.values(trainee.trained).reduce((sum, { size }) => sum + size, 0);
  output.table(
    ["a dry run of", ""],
    [
      ["examples", `${data.train.count}, ${showCount(data.train.tokens)} tokens`],
      ["trained parameters", showCount(trained)],
      ["steps", `${estimate.steps} of ${estimate.shapes} shapes`],
      ...(played
        ? [
            ["rollouts", String(played.rollouts)],
            ["time of a rollout's answers", `${(1000 * played.secondsPerRollout).toFixed(0)} ms`],
          ]
        : []),
      ["time of a step", `${(1000 * estimate.secondsPerStep).toFixed(0)} ms`],
      ["time of all steps", showTime(estimate.seconds)],
      ["memory", `${showBytes(bytes)} of ${showBytes(limit)} that may be taken`],
    ],
    ["left", "right"],
  );
  output.line("Nothing was trained or written.");
  if (bytes > limit) await refuseWhatDoesNotFit(job, options);
  output.json({
    steps: estimate.steps,
    shapes: estimate.shapes,
    secondsPerStep: estimate.secondsPerStep,
    ...(played && { rollouts: played.rollouts, secondsPerRollout: played.secondsPerRollout }),
    seconds: estimate.seconds,
    memoryBytes: bytes,
    memory: estimate.memory,
    limitBytes: limit,
    trainedParameters: trained,
  });
}
