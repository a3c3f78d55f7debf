/** `--preview`: which tokens carry loss, on the first example of each layout. */
import { type PreviewToken, previewExample, type Sample, type Tokenizer } from "./library.ts";
import { type Output, showPercent } from "./output.ts";

/** Tokens shown from an example's start and from its end. */
const [shownHead, shownTail] = [400, 200];

/** A line break shows as a sign and breaks the line; other control characters as their code. */
function visible(text: string): string {
  return (
    text
      .replace(/\r\n|\r|\n/g, (found) => (found === "\n" ? "↵\n" : "␍↵\n"))
      .replace(/\t/g, "→")
      // biome-ignore lint/suspicious/noControlCharactersInRegex: data must not command the terminal.
      .replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (found) => {
        return `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`;
      })
  );
}

interface Run {
  readonly text: string;
  readonly hasLoss: boolean;
}

/** Neighbours that agree, joined. */
function runsOf(tokens: readonly PreviewToken[]): Run[] {
  const runs: { text: string; hasLoss: boolean }[] = [];
  for (const { text, hasLoss } of tokens) {
    const last = runs.at(-1);
    if (last?.hasLoss === hasLoss) last.text += text;
    else runs.push({ text, hasLoss });
  }
  return runs;
}

/** Tokens as text: those that carry loss in green, or between ⟦ and ⟧ where there is no colour. */
export function paint(tokens: readonly PreviewToken[], output: Output): string {
  return runsOf(tokens)
    .map(({ text, hasLoss }) => {
      const shown = visible(text);
      if (!output.options.hasColor) return hasLoss ? `⟦${shown}⟧` : shown;
      // Each line is styled by itself, so that paging tools keep the colour.
      return shown
        .split("\n")
        .map((line) => (line === "" ? line : output.style(line, hasLoss ? "green" : "dim")))
        .join("\n");
    })
    .join("");
}

/** What the preview says, for machines. */
export interface PreviewReport {
  readonly kind: string;
  readonly where: string | null;
  readonly tokens: number;
  readonly lossTokens: number;
  /** Runs of tokens that carry loss or do not, in order. */
  readonly runs: readonly Run[];
}

/** Shows samples, and returns what was shown for JSON. */
export function showPreview(
  output: Output,
  samples: readonly Sample[],
  tokenizer: Tokenizer,
): PreviewReport[] {
  return samples.map(({ raw, example }) => {
    const { tokens, lossCount } = previewExample(example, tokenizer);
    const share = tokens.length === 0 ? 0 : lossCount / tokens.length;
    output.line(
      `${output.style(`First ${raw.kind}`, "bold")}${raw.where === undefined ? "" : ` (${raw.where})`}: ${tokens.length} tokens, ${lossCount} carry loss (${showPercent(share)})`,
    );
    const isLong = tokens.length > shownHead + shownTail;
    const head = isLong ? tokens.slice(0, shownHead) : tokens;
    output.line(paint(head, output));
    if (isLong) {
      output.line(output.style(`… ${tokens.length - shownHead - shownTail} tokens more …`, "cyan"));
      output.line(paint(tokens.slice(-shownTail), output));
    }
    output.line();
    return {
      kind: raw.kind,
      where: raw.where ?? null,
      tokens: tokens.length,
      lossTokens: lossCount,
      runs: runsOf(tokens),
    };
  });
}

/** What the colours mean; above the samples. */
export function previewLegend(output: Output): string {
  return output.options.hasColor
    ? `${output.style("Green", "green")} tokens carry loss; ${output.style("dim", "dim")} ones are only read. ↵ is a line break.`
    : "Tokens between ⟦ and ⟧ carry loss; the others are only read. ↵ is a line break.";
}
