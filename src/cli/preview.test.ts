import { afterEach, describe, expect, it, vi } from "vitest";
import type { Sample, Tokenizer } from "./library.ts";
import { Output } from "./output.ts";
import { paint, previewLegend, showPreview } from "./preview.ts";

/** Each id is the character of that code. */
const tokenizer = {
  decode: (ids: ArrayLike<number>) => String.fromCharCode(...Array.from(ids)),
} as unknown as Tokenizer;

function sample(text: string, loss: string): Sample {
  const ids = Int32Array.from(text, (c) => c.charCodeAt(0));
  const from = text.indexOf(loss);
  const mask = Uint8Array.from(ids, (_, i) => (i >= from && i < from + loss.length ? 1 : 0));
  return { raw: { kind: "text", text, where: "d.jsonl:4" }, example: { ids, mask } };
}

function output(hasColor: boolean): { output: Output; written: string[] } {
  const written: string[] = [];
  vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    written.push(String(text));
    return true;
  });
  const options = { isJson: false, isTerminal: false, hasColor, columns: 80 };
  return { output: new Output(options), written };
}

afterEach(() => {
  vi.restoreAllMocks();
});

describe("showPreview", () => {
  it("brackets what carries loss where there is no colour, and shows line breaks", () => {
    const { output: out, written } = output(false);
    const report = showPreview(out, [sample("What?\nParis.\n", "Paris.")], tokenizer);
    expect(written.join("")).toBe(
      "First text (d.jsonl:4): 13 tokens, 6 carry loss (46.2 %)\nWhat?↵\n⟦Paris.⟧↵\n\n\n",
    );
    expect(report).toEqual([
      {
        kind: "text",
        where: "d.jsonl:4",
        tokens: 13,
        lossTokens: 6,
        runs: [
          { text: "What?\n", hasLoss: false },
          { text: "Paris.", hasLoss: true },
          { text: "\n", hasLoss: false },
        ],
      },
    ]);
    expect(previewLegend(out)).toContain("Tokens between ⟦ and ⟧ carry loss");
  });

  it("colours it where there is colour", () => {
    const { output: out, written } = output(true);
    showPreview(out, [sample("ab\nc", "b\nc")], tokenizer);
    expect(written.join("")).toContain(
      "\u001b[2ma\u001b[0m\u001b[32mb↵\u001b[0m\n\u001b[32mc\u001b[0m",
    );
    expect(previewLegend(out)).toContain("\u001b[32mGreen\u001b[0m tokens carry loss");
  });

  it("lets no data command the terminal", () => {
    const { output: out } = output(false);
    const text = "a\u001b]0;owned\u0007\tb\u009b31m\u202ec\rd\r\ne";
    expect(paint([{ text, hasLoss: false }], out)).toBe(
      "a\\u001b]0;owned\\u0007→b\\u009b31m\\u202ec␍↵\nd␍↵\ne",
    );
  });

  it("leaves out the middle of long examples", () => {
    const { output: out, written } = output(false);
    showPreview(out, [sample(`${"x".repeat(700)}y`, "y")], tokenizer);
    expect(written.join("")).toContain(
      `${"x".repeat(400)}\n… 101 tokens more …\n${"x".repeat(199)}⟦y⟧`,
    );
  });
});
