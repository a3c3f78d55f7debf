/** What `finetune` says at its end: tables, samples, the adapter's card. */
import type { Job } from "./finetune-job.ts";
import type {
  Adapter,
  AdapterNumbers,
  Answer,
  ExampleScore,
  Run,
  TrainRunResult,
} from "./library.ts";
import { type Output, showCount, showPercent, showTime, sparkline } from "./output.ts";

/** How a model does on the held-out examples. */
export interface Measured extends ExampleScore {
  readonly answers: readonly Answer[];
}

/** Words of PEFT for its kinds of adapters (`PeftType`): folders of these load there. */
const peftTypes: ReadonlySet<string> = new Set([
  ...["LORA", "ADALORA", "XLORA", "VERA", "RANDLORA", "VBLORA", "FOURIERFT", "LOHA", "LOKR", "IA3"],
  ...["OFT", "BOFT", "HRA", "BONE", "MISS", "C3A", "SHIRA", "ROAD", "POLY", "LN_TUNING"],
  ...["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"],
  ...["ADAPTION_PROMPT", "TRAINABLE_TOKENS"],
]);

export function isPeft({ kind }: Adapter): boolean {
  return peftTypes.has(kind);
}

/** What the loss is a mean over, and what `accuracy` counts, by the objective's data. */
function wordsOf({ objective }: Job): { readonly loss: string; readonly right: string } {
  if (objective.data === "preference") return { loss: "loss per pair", right: "pairs right" };
  if (objective.data === "judged") return { loss: "loss per answer", right: "answers right" };
  return { loss: "loss per token", right: "tokens right" };
}

export function exactShare(answers: readonly Answer[]): number {
  return answers.filter(({ isExact }) => isExact).length / Math.max(1, answers.length);
}

/** For machines. */
export function summary({ nll, accuracy, answers }: Measured): Record<string, number | null> {
  return {
    loss: nll,
    perplexity: Math.exp(nll),
    tokenAccuracy: accuracy,
    exactMatch: answers.length > 0 ? exactShare(answers) : null,
    answered: answers.length,
  };
}

/** What is known when a card is written: of a run that was stopped, no results. */
export interface CardFacts {
  readonly job: Job;
  /** As it is kept, with its numbers. */
  readonly adapter: Adapter | undefined;
  readonly numbers: AdapterNumbers | undefined;
  readonly result: TrainRunResult;
  readonly before: Measured | undefined;
  readonly after: Measured | undefined;
}

/** README.md of the adapter or model folder. */
export function card({ job, adapter, numbers, result, before, after }: CardFacts): string {
  const { opened, data, dataName, settings, methods } = job;
  const tags = adapter
    ? `${isPeft(adapter) ? "library_name: peft\n" : ""}tags: [${adapter.kind.toLowerCase()}, plasticity]`
    : "tags: [plasticity]";
  const what = adapter
    ? `${adapter.title} adapter for ${opened.name}`
    : `${opened.name}, fine-tuned`;
  const config = adapter?.config(numbers) ?? {};
  const { initialiser, dataPolicy } = methods;
  const asked = (method: { readonly id: string }, said: string): string =>
    said === "" ? method.id : `${method.id}: ${said}`;
  const words = wordsOf(job);
  const rows = [
    ["examples", `${data.train.count}, held out ${data.heldOut.count}`],
    ["steps", `${result.step}${result.isStopped ? " (stopped early)" : ""}`],
    ["batch size", String(settings.batchSize)],
    ["objective", asked({ id: job.objective.name }, job.objective.said)],
    ["optimizer", `${settings.optimizer}, schedule ${settings.schedule}`],
    ["seed", String(settings.seed)],
    ...(methods.adapter ? [["adapter", asked(methods.adapter.method, methods.adapter.said)]] : []),
    ...(typeof config["r"] === "number"
      ? [["rank, alpha", `${config["r"]}, ${String(config["lora_alpha"])}`]]
      : []),
    ...(initialiser ? [["first numbers", asked(initialiser.method, initialiser.said)]] : []),
    ...(dataPolicy ? [["curriculum", asked(dataPolicy.method, dataPolicy.said)]] : []),
  ];
  const table = (head: readonly string[], body: readonly (readonly string[])[]): string =>
    [head, head.map(() => "---"), ...body].map((row) => `| ${row.join(" | ")} |`).join("\n");
  const measured =
    before && after
      ? `\n${table(
          ["held out", "before", "after"],
          [
            [words.loss, before.nll.toFixed(3), after.nll.toFixed(3)],
            [words.right, showPercent(before.accuracy), showPercent(after.accuracy)],
            ...(after.answers.length > 0
              ? [
                  [
                    `exact match (${after.answers.length})`,
                    showPercent(exactShare(before.answers)),
                    showPercent(exactShare(after.answers)),
                  ],
                ]
              : []),
          ],
        )}\n`
      : "";
  return `---\nbase_model: ${opened.name}\n${tags}\n---\n\n# ${what}\n\nTrained with plasticity on \`${dataName}\`.\n${measured}\n${table(["setting", ""], rows)}\n\n![Loss over steps](loss.svg)\n`;
}

/** What the model answered, for samples.json. */
export function samplesOf(
  before: Measured,
  after: Measured,
  texts: { before: string; after: string } | undefined,
): unknown {
  if (texts) return [texts];
  return after.answers.map(({ prompt, expected, answer, isExact }, i) => ({
    prompt,
    expected,
    before: before.answers[i]?.answer ?? null,
    after: answer,
    isExact,
  }));
}

/** What result.json and `--json` say. */
export function reportOf(
  run: Run,
  job: Job,
  result: TrainRunResult,
  before: Measured,
  after: Measured,
  copies: number | undefined,
): Readonly<Record<string, unknown>> {
  return {
    out: run.folder,
    model: job.opened.name,
    data: job.dataName,
    objective: job.objective.name,
    adapter: job.methods.adapter?.method.id ?? null,
    init: job.methods.initialiser?.method.id ?? null,
    ...(job.openedAdapter?.report && { initReport: job.openedAdapter.report }),
    steps: result.steps,
    bestStep: result.step,
    isStopped: false,
    isEarly: result.isEarly,
    seconds: result.seconds,
    tokensPerSecond: result.tokens / result.seconds,
    trainedParameters: Object.values(job.trainee.trained).reduce((sum, { size }) => sum + size, 0),
    peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    heldOut: job.data.heldOut.count,
    before: summary(before),
    after: summary(after),
    nearestNeighbourExactMatch: copies ?? null,
  };
}

/** For people. */
export function show(
  output: Output,
  job: Job,
  {
    before,
    after,
    copies,
    result,
    trainSeconds,
    texts,
  }: {
    before: Measured;
    after: Measured;
    copies: number | undefined;
    result: TrainRunResult;
    trainSeconds: number;
    texts: { before: string; after: string } | undefined;
  },
): void {
  output.line(
    `${result.isEarly ? `No better for a while: ended after ${result.steps} steps, kept step ${result.step};` : `Trained ${result.steps} steps in`} ${showTime(trainSeconds)}, ${showCount(result.tokens / trainSeconds)} tokens/s`,
  );
  output.line(
    `Loss     ${sparkline(result.losses, 60)}  ${result.losses[0]?.toFixed(2)} → ${result.losses.at(-1)?.toFixed(2)}`,
  );
  output.line();
  const words = wordsOf(job);
  const rows: string[][] = [
    [words.loss, before.nll.toFixed(3), after.nll.toFixed(3)],
    ...(words.right === "tokens right"
      ? [["perplexity", Math.exp(before.nll).toFixed(2), Math.exp(after.nll).toFixed(2)]]
      : []),
    [words.right, showPercent(before.accuracy), showPercent(after.accuracy)],
  ];
  if (after.answers.length > 0) {
    rows.push([
      `exact match (${after.answers.length})`,
      showPercent(exactShare(before.answers)),
      showPercent(exactShare(after.answers)),
    ]);
  }
  if (copies !== undefined) rows.push(["copying the nearest example", "", showPercent(copies)]);
  output.table(["held out", "before", "after"], rows, ["left", "right", "right"]);
  output.line();
  const every = Math.ceil(after.answers.length / 4);
  for (let i = 0; i < after.answers.length; i += every) {
    const [then, now] = [before.answers[i]!, after.answers[i]!];
    output.line(`${output.style("▸", "cyan")} ${now.prompt}`);
    output.line(`  before  ${output.style(oneLine(then.answer), "dim")}`);
    output.line(
      `  after   ${output.style(oneLine(now.answer), now.isExact ? "green" : "red")}${now.isExact ? "" : `   expected ${now.expected}`}`,
    );
  }
  if (texts) {
    output.line(
      `${output.style("before", "bold")}  ${output.style(oneLine(texts.before, 240), "dim")}`,
    );
    output.line(`${output.style("after", "bold")}   ${oneLine(texts.after, 240)}`);
  }
  output.line();
}

function oneLine(text: string, limit = 72): string {
  const flat = text.replace(/\s+/g, " ").trim();
  return flat.length > limit ? `${flat.slice(0, limit - 1)}…` : flat;
}
