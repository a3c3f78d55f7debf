/** `generate --json-schema` of the built command line, with the model in this package. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { fitsSchema } from "../src/infer/grammar/validate.ts";
import { parseJson } from "../src/io/json.ts";
import { runCli } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-structured-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const schema = {
  type: "object",
  properties: {
    title: { type: "string", maxLength: 12 },
    pages: { type: "integer", minimum: 1, maximum: 999 },
  },
  required: ["title", "pages"],
};

it("makes JSON that fits a schema, for every text", async () => {
  writeFileSync(join(root, "book.json"), JSON.stringify(schema));
  const made = await runCli(
    [
      "generate",
      "--prompt",
      "A book:\n",
      "--json-schema",
      "book.json",
      "--temperature",
      "1.5",
      "--seed",
      "4",
      "--n",
      "3",
      "--json",
    ],
    { cwd: root },
  );
  expect(made.code).toBe(0);
  const { samples } = JSON.parse(made.stdout) as {
    samples: { text: string; finishReason: string }[];
  };
  expect(samples.map(({ finishReason }) => finishReason)).toEqual(["stop", "stop", "stop"]);
  for (const { text } of samples) expect(fitsSchema(parseJson(text, "text"), schema)).toBe(true);
});

it("refuses what it cannot hold to, or cannot read, with the place", async () => {
  writeFileSync(join(root, "wrong.json"), '{"properties": {"a": {"uniqueItems": true}}}');
  writeFileSync(join(root, "broken.json"), '{"properties": ');
  const say = async (file: string): Promise<string> => {
    const { code, stderr } = await runCli(["generate", "--prompt", "A", "--json-schema", file], {
      cwd: root,
    });
    expect(code).toBe(2);
    return stderr;
  };
  expect(await say("wrong.json")).toContain('the schema at #/properties/a has "uniqueItems"');
  expect(await say("broken.json")).toContain("broken.json: invalid JSON at byte 15");
  expect(await say("absent.json")).toContain("absent.json");
});
