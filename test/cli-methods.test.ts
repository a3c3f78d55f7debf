/** The catalogue on the command line, and fine-tunings that are put together from several methods. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { chooseMethods } from "../src/cli/choose-methods.ts";
import { parseOptions } from "../src/cli/command.ts";
import { parseArms } from "../src/cli/compare.ts";
import { finetuneCommand } from "../src/cli/finetune.ts";
import { finetuneOptions } from "../src/cli/finetune-options.ts";
import { generateCommand } from "../src/cli/generate.ts";
import { mergeCommand } from "../src/cli/merge.ts";
import { methodsMarkdown, usageOf } from "../src/cli/methods.ts";
import { OptionError } from "../src/errors.ts";
import { methods, methodsWith } from "../src/methods/registry.ts";
import { runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-methods-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);
const cli = (...args: readonly string[]) => runCli(args, { cwd: root });

beforeAll(async () => {
  await writeTinyModel(at("model"));
  const record = (i: number): string =>
    `${JSON.stringify({ prompt: `say ${i}`, completion: `${i}!` })}\n`;
  writeFileSync(at("data.jsonl"), Array.from({ length: 30 }, (_, i) => record(i)).join(""));
});

const finetune = [
  ...["finetune", "--model", "model", "--data", "data.jsonl", "--threads", "1"],
  ...["--batch-size", "4", "--steps", "3", "--eval-limit", "1"],
];

describe("plasticity methods", () => {
  it("lists all for machines, with every fact", async () => {
    const { code, stdout } = await cli("methods", "--json");
    const found = JSON.parse(stdout) as Record<string, unknown>[];
    expect([code, found.length]).toEqual([0, methods.length]);
    for (const one of found) {
      expect(Object.keys(one)).toEqual([
        ...["number", "id", "title", "paper", "capability", "roles", "implementation", "claim"],
        "summary",
      ]);
    }
    expect(found.slice(0, 94).map(({ number }) => number)).not.toContain(null);
  });

  it("narrows the list", async () => {
    const { stdout } = await cli(
      ...[
        "methods",
        "--capability",
        "adapt",
        "--role",
        "adapter",
        "--search",
        "low-rank",
        "--json",
      ],
    );
    const found = JSON.parse(stdout) as { id: string; capability: string }[];
    expect(found.map(({ id }) => id)).toContain("hydra");
    expect(new Set(found.map(({ capability }) => capability))).toEqual(new Set(["adapt"]));
  });

  it("shows one: facts, options, how to use it", async () => {
    const { code, stdout } = await cli("methods", "dpo");
    expect(code).toBe(0);
    expect(stdout).toMatch(/^DPO \(dpo\)$/m);
    expect(stdout).toMatch(/^beta +0\.1 +\(0, 100\] +\S/m);
    expect(stdout).toMatch(/--objective dpo:beta=0\.1$/m);
  });

  it.each([
    [
      ["dpoo"],
      'unknown method "dpoo" — did you mean "dpo"? Run "plasticity methods" for the list.',
    ],
    [["dpo", "--role", "merge"], 'methods: --role narrows the list — leave "dpo" or it out.'],
  ])("refuses %j in a sentence", async (args, sentence) => {
    const { code, stderr } = await cli("methods", ...args);
    expect([code, stderr]).toEqual([2, `${sentence}\n`]);
  });

  it("has written METHODS.md as it is now", () => {
    const path = new URL("../METHODS.md", import.meta.url);
    const isSame = readFileSync(path, "utf8") === methodsMarkdown();
    expect(isSame, "run: npx plasticity methods --markdown > METHODS.md").toBe(true);
  });

  it.each(methods.flatMap((method) => usageOf(method).map((line) => [line, method.id] as const)))(
    "shows a command line that is understood: %s",
    (line) => {
      const [, name, ...args] = line.split(" ");
      const command = [finetuneCommand, mergeCommand, generateCommand].find(
        (one) => one.name === name,
      )!;
      const { options } = parseOptions(command, args);
      if (command === finetuneCommand) expect(() => chooseMethods(options)).not.toThrow();
      else expect(Object.values(options).filter((value) => value !== undefined)).not.toEqual([]);
    },
  );
});

describe("choosing methods", () => {
  const choose = (...args: readonly string[]) =>
    chooseMethods(parseOptions({ name: "finetune", options: finetuneOptions }, args).options);

  it("gives a flag to the method that has it, and a method's own text the last word", () => {
    const chosen = choose(
      ...["--adapter", "lora:rank=4", "--rank", "8", "--alpha", "3", "--objective", "dpo"],
      ...["--beta", "0.3", "--rank-pattern", "v_proj=2", "--targets", "q_proj,v_proj"],
    );
    expect(chosen.adapter!.options).toMatchObject({
      ...{ rank: 4, alpha: 3, rankPattern: { v_proj: 2 } },
      targetModules: ["q_proj", "v_proj"],
    });
    expect(chosen.objective.options).toMatchObject({ beta: 0.3, loss: "sigmoid" });
  });

  it("keeps the defaults of a fine-tuning", () => {
    const { adapter, objective, initialiser, dataPolicy } = choose();
    expect(adapter!.options).toMatchObject({ rank: 16, targetModules: "all-linear", dropout: 0 });
    expect([objective.name, initialiser, dataPolicy]).toEqual(["sft", undefined, undefined]);
  });

  it.each<[string[], string]>([
    [
      ["--objective", "orpo", "--old-model", "x"],
      "finetune: --old-model is not of --objective orpo — it is of muscle.",
    ],
    [
      ["--desirable-weight", "1"],
      "finetune: --desirable-weight is no option of sft and lora — it is of kto.",
    ],
    [
      ["--objective", "reward", "--full"],
      "finetune: --objective reward trains a head beside an adapter — leave --full out.",
    ],
    [
      ["--objective", "grpo", "--packing"],
      "finetune: --objective grpo packs no answers — leave --packing out.",
    ],
    [
      ["--objective", "distill"],
      "finetune: --objective distill needs --teacher <folder>, a model to learn from.",
    ],
    [
      ["--objective", "taid", "--teacher", "x", "--alpha", "2"],
      "finetune: --alpha is an option of lora and taid — write it with the method that is meant, as lora:alpha=2.",
    ],
    [
      ["--objective", "kto", "--reference", "recorded"],
      "finetune: --reference recorded is of dpo and ipo — kto compares answers that change with the batch.",
    ],
    [
      ["--replay-share", "0.1"],
      "finetune: --replay-share needs --replay <file>, further examples.",
    ],
    [
      ["--init", "eva", "--full"],
      "finetune: --init eva gives an adapter its first numbers — leave --full out.",
    ],
    [
      ["--init", "eva", "--adapter", "hydra"],
      "finetune: --init eva gives LoRA its first numbers, and --adapter is hydra — take --adapter lora.",
    ],
    [["--adapter", "lora:rank=0"], 'lora: rank must be a whole number from 1 to 4096, got "0".'],
    [["--adapter", "lorra"], 'finetune: --adapter: unknown method "lorra" — did you mean "lora"?'],
    [["--objective", "dpo:beta"], "dpo: beta must be a number in (0, 100], got true."],
  ])("refuses %j", (args, sentence) => {
    expect(() => choose(...args)).toThrow(new OptionError(sentence));
  });

  it("says of every other model and file whose it is", () => {
    for (const { roles } of [...methodsWith("objective"), ...methodsWith("dataPolicy")]) {
      const names = [...(roles.objective?.models ?? []), ...(roles.dataPolicy?.files ?? [])];
      for (const name of names) expect(Object.keys(finetuneOptions)).toContain(name);
    }
  });
});

describe("--compare", () => {
  it.each([
    ["lora,full", [["--adapter", "lora"], ["--full"]]],
    [
      "lora+eva,lora:rank=4:learning-rate=1e-3+eva:rho=1.5",
      [
        ["--adapter", "lora", "--init", "eva"],
        ["--adapter", "lora:rank=4", "--learning-rate", "1e-3", "--init", "eva:rho=1.5"],
      ],
    ],
    [
      "lora:targets=q_proj+v_proj+eva,dpo:beta=0.2",
      [
        ["--adapter", "lora:targetModules=q_proj+v_proj", "--init", "eva"],
        ["--objective", "dpo:beta=0.2"],
      ],
    ],
  ])("reads %s", (text, args) => {
    expect(parseArms(text).map((arm) => arm.args)).toEqual(args);
  });

  it("tries initialisers and adapters with what each takes of the command line", async () => {
    const arms = "lora+eva:batches=4,hydra,full";
    const { code, stdout, stderr } = await cli(
      ...[...finetune, "--rank", "2", "--alpha", "4", "--compare", arms, "--out", "compared"],
      "--json",
    );
    expect(code, stderr).toBe(0);
    const { results } = JSON.parse(stdout) as { results: { name: string; steps: number }[] };
    expect(results.map(({ name, steps }) => [name, steps])).toEqual(
      arms.split(",").map((name) => [name, 3]),
    );
  });
});

describe("finetune", () => {
  it("begins LoRA with an initialiser and goes on with the same numbers", async () => {
    const args = [...finetune, "--adapter", "lora:rank=2", "--init", "eva:batches=4,rho=1.5"];
    const whole = await cli(...args, "--out", "whole", "--json");
    expect(whole.code, whole.stderr).toBe(0);
    const report = JSON.parse(whole.stdout) as Record<string, unknown>;
    expect(report).toMatchObject({ adapter: "lora", init: "eva", objective: "sft" });
    expect(Object.keys(report["initReport"] as object)).toContain("ranks");
    const card = readFileSync(at("whole", "README.md"), "utf8");
    expect(card).toContain("| first numbers | eva: batches=4, rho=1.5 |");
    const stopped = await runCli([...args, "--out", "stopped", "--save-every", "1", "--json"], {
      cwd: root,
      watch: (text, child) => {
        if (/step 1\/3/.test(text)) child.kill("SIGINT");
      },
    });
    expect([0, 130]).toContain(stopped.code);
    const resumed = await cli("finetune", "--resume", "stopped", "--json");
    expect(resumed.code, resumed.stderr).toBe(0);
    const name = "adapter_model.safetensors";
    expect(readFileSync(at("stopped", name)).equals(readFileSync(at("whole", name)))).toBe(true);
  });

  it("takes a teacher with an adapter on it", async () => {
    const { code, stderr, stdout } = await cli(
      ...[...finetune, "--rank", "2", "--objective", "taid:tStart=0.2"],
      ...["--teacher", "model+whole", "--out", "taught", "--json"],
    );
    expect(code, stderr).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ objective: "taid", steps: 3 });
  });

  it("trains an adapter of another kind, and generates with it", async () => {
    const { id, tiny = {} } = methodsWith("adapter").find(
      ({ roles }) => roles.adapter.kind !== "LORA",
    )!;
    const own = Object.entries(tiny).map(([name, value]) => `${name}=${String(value)}`);
    const text = own.length === 0 ? id : `${id}:${own.join(",")}`;
    const made = await cli(...finetune, "--adapter", text, "--out", "other", "--json");
    expect(made.code, made.stderr).toBe(0);
    const said = await cli(
      ...["generate", "--model", "model", "--adapter", "other", "--prompt", "say 1"],
      ...["--max-new-tokens", "3", "--json"],
    );
    expect(said.code, said.stderr).toBe(0);
  });
});
