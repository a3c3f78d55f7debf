/** Trains inside a run's folder: what is logged and saved, when it ends, and how it goes on. */
import { OptionError, StateError } from "../errors.ts";
import type { Clock, Files } from "../host/host.ts";
import { lineChart } from "../io/chart.ts";
import { EventWriter } from "../io/tensorboard.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { ExampleScore, Examples, Finetuner, FinetuneStep, ScoreOptions } from "./finetune.ts";
import type { Metrics, Run } from "./run.ts";

/** A training by steps: `Finetuner`, `PolicyTrainer`. */
export interface Tuner
  extends Pick<Finetuner, "steps" | "step" | "next" | "params" | "state" | "load"> {
  evaluate(examples: Examples, options: ScoreOptions): Promise<ExampleScore | undefined>;
}

export interface TrainRunOptions {
  /** Examples to judge by while training. */
  readonly heldOut?: Examples;
  /** Judge every so many steps; default never. */
  readonly evalEvery?: number;
  /**
   * End when this many evaluations in a row were no better than the best; the result is then the best
   * one's parameters. Default: go on, and the result is the last step's.
   */
  readonly earlyStopping?: number;
  /** Write a checkpoint every so many steps; default a tenth of all, and once a minute. */
  readonly saveEvery?: number;
  /** Checkpoints kept, beside the best; default 2. */
  readonly keep?: number;
  /** Ends the training after a step and leaves a checkpoint. */
  readonly signal?: AbortSignal;
  readonly onStart?: (step: number) => void;
  /** With the time in steps so far, evaluations left out. */
  readonly onStep?: (info: FinetuneStep, seconds: number) => void;
  readonly onEvaluate?: (step: number, score: ExampleScore) => void;
  readonly onSave?: (step: number) => void;
  readonly onWarn?: (message: string) => void;
}

export interface TrainRunResult {
  readonly params: TensorRecord;
  /** Buffers that changed with the training; the others are as they were. */
  readonly buffers: TensorRecord;
  /** Of every step, those before a stop included. */
  readonly losses: readonly number[];
  /** Steps made, and that of the parameters. */
  readonly steps: number;
  readonly step: number;
  readonly tokens: number;
  /** Time in steps, over all starts. */
  readonly seconds: number;
  /** Whether a signal ended it early; it can go on. */
  readonly isStopped: boolean;
  /** Whether evaluations that were no better ended it. */
  readonly isEarly: boolean;
}

/** Most seconds between two checkpoints where no number of steps is given. */
const saveSeconds = 60;

function check(options: TrainRunOptions): void {
  const { evalEvery, earlyStopping, saveEvery, keep } = options;
  for (const [name, value] of Object.entries({ evalEvery, earlyStopping, saveEvery, keep })) {
    if (value === undefined || (Number.isInteger(value) && value >= 1)) continue;
    throw new OptionError(`run: ${name} must be a whole number from 1, got ${value}.`);
  }
  if (earlyStopping !== undefined && evalEvery === undefined) {
    throw new OptionError("run: earlyStopping needs evalEvery — how often to judge.");
  }
  if (evalEvery !== undefined && options.heldOut === undefined) {
    throw new OptionError("run: evalEvery needs held-out examples to judge by.");
  }
}

/** Evaluations of a log, by step. */
function evaluationsOf(metrics: readonly Metrics[]): { step: number; nll: number }[] {
  return metrics.flatMap((line) => {
    const nll = line["heldOutLoss"];
    return nll === undefined ? [] : [{ step: line.step, nll }];
  });
}

/** The best evaluation, the earliest of equals, and how many came after it. */
function standing(evaluations: readonly { step: number; nll: number }[]): {
  best: { step: number; nll: number } | undefined;
  since: number;
} {
  let at = -1;
  evaluations.forEach(({ nll }, i) => {
    if (at < 0 || nll < evaluations[at]!.nll) at = i;
  });
  return { best: evaluations[at], since: at < 0 ? 0 : evaluations.length - 1 - at };
}

/**
 * Trains from the newest checkpoint of the run, or from the beginning, to the end. The weights have
 * the same bits however often it was killed and taken up again.
 * @throws OptionError for settings outside their range.
 * @throws StateError when the loss is not a number; the last good parameters are then saved.
 */
export async function trainRun(
  run: Run,
  tuner: Tuner,
  host: { readonly files: Files; readonly clock: Clock },
  options: TrainRunOptions = {},
): Promise<TrainRunResult> {
  check(options);
  const { heldOut, evalEvery = Infinity, earlyStopping = Infinity, keep = 2 } = options;
  const saveEvery = options.saveEvery ?? Math.max(1, Math.ceil(tuner.steps / 10));
  const known = await run.load((message) => options.onWarn?.(`${message} Taking an older one.`));
  if (known) await tuner.load(known);
  await run.cutTo(tuner.step);
  let seconds = Number(known?.notes["seconds"] ?? 0);
  let tokens = known?.tokens ?? 0;
  const events = await EventWriter.open(host.files, run.folder, {
    wallTime: host.clock.now() / 1000,
    resumeStep: tuner.step,
  });
  const add = (step: number, scalars: Record<string, number>): void =>
    events.add({ wallTime: host.clock.now() / 1000, step, scalars });
  let savedStep = known ? tuner.step : -1;
  let lastSave = host.clock.monotonic();
  const save = async (kept: number): Promise<void> => {
    if (savedStep === tuner.step) return;
    const state = await tuner.state();
    // The next step says that its loss is no number, and on which examples.
    if (notFinite(state.params) !== undefined) return;
    // Events first: those beyond the checkpoint are cut when the run goes on, lost ones stay lost.
    await events.flush();
    await run.save(state, { seconds }, kept);
    savedStep = tuner.step;
    lastSave = host.clock.monotonic();
    options.onSave?.(savedStep);
  };
  const isToBeJudged = (): boolean =>
    heldOut !== undefined &&
    tuner.step > 0 &&
    evalEvery !== Infinity &&
    (tuner.step % evalEvery === 0 || tuner.step === tuner.steps) &&
    evaluationsOf(run.metrics).at(-1)?.step !== tuner.step;
  const judge = async (): Promise<void> => {
    const score = await tuner.evaluate(heldOut!, {
      ...(options.signal && { signal: options.signal }),
    });
    const { step } = tuner;
    // Stopped in the middle: it is made up for when the run goes on.
    if (!score) return;
    if (!Number.isFinite(score.nll)) {
      throw new StateError(
        `finetune: the loss on held-out examples after step ${step} is ${score.nll} — lower the learning rate, or look at these examples.`,
        { step },
      );
    }
    const { best } = standing(evaluationsOf(run.metrics));
    // The best parameters before the line that says so: a kill between them changes nothing.
    if (!best || score.nll < best.nll) await run.saveBest(await tuner.state(), { nll: score.nll });
    await run.log({ step, heldOutLoss: score.nll, heldOutAccuracy: score.accuracy });
    add(step, { "heldOut/loss": score.nll, "heldOut/accuracy": score.accuracy });
    options.onEvaluate?.(step, score);
  };
  const isEarly = (): boolean =>
    standing(evaluationsOf(run.metrics)).since >= earlyStopping && earlyStopping !== Infinity;

  options.onStart?.(tuner.step);
  let failure: { readonly error: unknown } | undefined;
  try {
    if (isToBeJudged()) await judge();
    while (tuner.step < tuner.steps && !isEarly()) {
      if (options.signal?.aborted) break;
      const start = host.clock.monotonic();
      const info = await tuner.next();
      if (!info) break;
      seconds += (host.clock.monotonic() - start) / 1000;
      tokens = info.tokens;
      const { step, loss, learningRate, gradientNorm } = info;
      await run.log({ step, loss, learningRate, gradientNorm, tokens, seconds, ...info.metrics });
      add(step, {
        "train/loss": loss,
        "train/learningRate": learningRate,
        "train/gradientNorm": gradientNorm,
        ...Object.fromEntries(
          Object.entries(info.metrics ?? {}).map(([name, value]) => [`train/${name}`, value]),
        ),
      });
      options.onStep?.(info, seconds);
      if (isToBeJudged()) await judge();
      const isDue =
        options.saveEvery === undefined && host.clock.monotonic() - lastSave >= saveSeconds * 1000;
      if (step % saveEvery === 0 || isDue) await save(keep);
    }
    const broken = notFinite(await tuner.params());
    if (broken !== undefined) {
      throw new StateError(
        `finetune: "${broken}" holds numbers that are none after step ${tuner.step} — lower the learning rate.`,
        { step: tuner.step, parameter: broken },
      );
    }
  } catch (error) {
    failure = { error };
  }
  try {
    // Also when a step failed: its update was not applied. Older checkpoints then stay, as this one may
    // be what led to the failure.
    if (tuner.step > 0) await save(failure ? keep + 1 : keep);
    await events.flush();
    if (run.metrics.length > 0) await host.files.writeText(run.path("loss.svg"), lossChart(run));
  } catch (error) {
    failure ??= { error };
  }
  if (failure) throw failure.error;
  const early = isEarly();
  const isStopped = tuner.step < tuner.steps && !early;
  const useBest = earlyStopping !== Infinity && !isStopped;
  const best = useBest ? standing(evaluationsOf(run.metrics)).best : undefined;
  const chosen = best ? await run.best() : await tuner.state();
  return {
    buffers: { ...chosen.buffers },
    params: Object.fromEntries(
      Object.entries(chosen.params).map(([name, tensor]) => [name, tensor.to("float32")]),
    ),
    losses: run.metrics.flatMap((line) => (line["loss"] === undefined ? [] : [line["loss"]])),
    steps: tuner.step,
    step: best?.step ?? tuner.step,
    tokens,
    seconds,
    isStopped,
    isEarly: early,
  };
}

/** The first parameter with a number that is none. */
function notFinite(params: TensorRecord): string | undefined {
  return Object.entries(params).find(([, tensor]) => {
    const data = tensor.numbers();
    for (let i = 0; i < data.length; i++) if (data[i]! - data[i]! !== 0) return true;
    return false;
  })?.[0];
}

/** Training and held-out loss over steps, as SVG. */
export function lossChart(run: { readonly metrics: readonly Metrics[] }): string {
  const points = (name: string): [number, number][] =>
    run.metrics.flatMap((line): [number, number][] =>
      line[name] === undefined ? [] : [[line.step, line[name]]],
    );
  const [losses, heldOut] = [points("loss"), points("heldOutLoss")];
  // A line over about a fifteenth of all steps.
  const smooth = 1 - 1 / Math.max(3, losses.length / 15);
  return lineChart({
    title: "Loss",
    xLabel: "step",
    yLabel: "loss per token",
    series: [
      { name: "training", points: losses, smooth },
      ...(heldOut.length > 0 ? [{ name: "held out", points: heldOut }] : []),
    ],
  });
}
