/** `generate --decode` of the built command line, with the model in this package. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Ended, runCli } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-drafting-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const prompt = "It was a dark night, and the old man";
const generate = (...args: readonly string[]): Promise<Ended> =>
  runCli(["generate", "--threads", "1", "--prompt", prompt, ...args], { cwd: root });

describe("generate --decode", () => {
  it("writes what plain decoding writes, and tells its passes", async () => {
    const sampled = ["--max-new-tokens", "40", "--temperature", "0.8", "--seed", "3", "--n", "2"];
    const plain = JSON.parse((await generate(...sampled, "--json")).stdout);
    const drafted = await generate(...sampled, "--json", "--decode", "aded:depth=4,nodes=7");
    expect(drafted.code).toBe(0);
    const {
      passes,
      tokensPerPass,
      drafted: nodes,
      accepted,
      ...report
    } = JSON.parse(drafted.stdout) as Record<string, unknown> &
      Record<"passes" | "drafted" | "accepted", number>;
    expect(report["samples"]).toEqual(plain.samples);
    expect(passes).toBeLessThan(80);
    expect(tokensPerPass).toBe(80 / passes);
    expect(accepted).toBe(80 - passes);
    expect(nodes).toBeGreaterThan(accepted);
    expect(drafted.stderr).toContain(
      ` ${passes} passes, ${(80 / passes).toFixed(2)} tokens a pass`,
    );
  });

  it("begins from the n-grams of a corpus", async () => {
    const greedy = ["--max-new-tokens", "24"];
    const { stdout } = await generate(...greedy);
    writeFileSync(join(root, "corpus.txt"), `${prompt}${stdout}`.repeat(3));
    const how = ["--decode", "ngram-static", "--draft-corpus", "corpus.txt"];
    const drafted = await generate(...greedy, ...how);
    expect(drafted.stdout).toBe(stdout);
    const [, passes] = / (\d+) passes, /.exec(drafted.stderr)!;
    expect(Number(passes)).toBeLessThan(16);
  });

  it.each([
    [["--decode", "adedd"], 'generate: --decode: unknown method "adedd" — did you mean "aded"?'],
    [["--decode", "aded:depth=0"], 'aded: depth must be a whole number from 1 to 32, got "0".'],
    [
      ["--decode", "ngram-static"],
      "generate: --decode ngram-static needs --draft-corpus — give a text file like what will be written.",
    ],
    [
      ["--decode", "prompt-lookup", "--draft-corpus", "x.txt"],
      "generate: --decode prompt-lookup reads no corpus — leave --draft-corpus out.",
    ],
    [["--draft-corpus", "x.txt"], "generate: --draft-corpus has no use without --decode."],
  ])("refuses %j before it reads a model", async (args, message) => {
    const { code, stdout, stderr } = await generate("--model", "nowhere", ...args);
    expect([code, stdout, stderr]).toEqual([2, "", `${message}\n`]);
  });
});
