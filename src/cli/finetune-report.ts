/** What `finetune` says at its end: tables, samples, the adapter's card. */
import type { Answer, ExampleScore, FinetuneResult } from "./library.ts";
import { type Output, showCount, showPercent, showTime, sparkline } from "./output.ts";

/** How a model does on the held-out examples. */
export interface Measured extends ExampleScore {
  readonly answers: readonly Answer[];
}

function exactShare(answers: readonly Answer[]): number {
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

/** README.md of the adapter folder. */
export function card(model: string, data: string, before: Measured, after: Measured): string {
  const exact =
    after.answers.length === 0
      ? ""
      : `| exact match | ${showPercent(exactShare(before.answers))} | ${showPercent(exactShare(after.answers))} |\n`;
  return `---\nbase_model: ${model}\nlibrary_name: peft\ntags: [lora, plasticity]\n---\n\n# LoRA adapter for ${model}\n\nTrained with plasticity on \`${data}\`.\n\n| held out | before | after |\n|---|---|---|\n| loss | ${before.nll.toFixed(3)} | ${after.nll.toFixed(3)} |\n${exact}`;
}

/** For people. */
export function show(
  output: Output,
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
    result: FinetuneResult;
    trainSeconds: number;
    texts: { before: string; after: string } | undefined;
  },
): void {
  output.line(
    `${result.isStopped ? "Stopped after" : "Trained"} ${result.steps} steps in ${showTime(trainSeconds)}, ${showCount(result.tokens / trainSeconds)} tokens/s`,
  );
  output.line(
    `Loss     ${sparkline(result.losses, 60)}  ${result.losses[0]?.toFixed(2)} → ${result.losses.at(-1)?.toFixed(2)}`,
  );
  output.line();
  const rows: string[][] = [
    ["loss per token", before.nll.toFixed(3), after.nll.toFixed(3)],
    ["perplexity", Math.exp(before.nll).toFixed(2), Math.exp(after.nll).toFixed(2)],
    ["tokens right", showPercent(before.accuracy), showPercent(after.accuracy)],
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
