/** LoRA that begins with its base's weights, and adapters combined and converted, on the command line. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LoraOptions, lora } from "../src/adapters/lora.ts";
import { factorsOf, plainLora } from "../src/adapters/lora-parts.ts";
import { saveAdapter } from "../src/adapters/peft.ts";
import { adapterCommand } from "../src/cli/adapter.ts";
import { parseOptions } from "../src/cli/command.ts";
import { Output } from "../src/cli/output.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../src/data/bpe.ts";
import { OptionError } from "../src/errors.ts";
import { nodeHost } from "../src/host/node.ts";
import { writeSafetensors } from "../src/io/safetensors.ts";
import { loadAdapter } from "../src/methods/load-adapter.ts";
import { loadModel, saveModel } from "../src/models/folder.ts";
import { Llama } from "../src/models/llama.ts";
import { multiply } from "../src/tensor/linalg/index.ts";
import { Rng } from "../src/tensor/rng.ts";
import { noisy } from "./support/contract.ts";
import { fixture, type RawTensors, tensorOf } from "./support/fixture.ts";
import { runCli } from "./support/run-cli.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-adapter-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);
const cli = (...args: readonly string[]) => runCli(args, { cwd: root });

const model = new Llama({
  ...{ vocabSize: 257, dModel: 32, dFeedForward: 64, nLayers: 1, nHeads: 2 },
  ...{ maxPositions: 64, initializerRange: 0.3 },
});
const drawn = async (name: string, seed: number, options: LoraOptions): Promise<void> => {
  const adapter = lora(model, { targetModules: ["q_proj", "down_proj"], ...options });
  const params = noisy(adapter.init(new Rng(seed)), seed, 0.1);
  await saveAdapter(files, at(name), adapter, params, { base: "model" });
};

beforeAll(async () => {
  const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
  await saveModel(files, at("model"), model, model.init(new Rng(1)).params, {
    files: {
      "tokenizer.json": toTokenizerJson(bpe),
      "tokenizer_config.json": toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }),
    },
  });
  const record = (i: number): string =>
    `${JSON.stringify({ prompt: `say ${i}`, completion: `${i}!` })}\n`;
  const some = (from: number, to: number): string =>
    Array.from({ length: to - from }, (_, i) => record(from + i)).join("");
  writeFileSync(at("data.jsonl"), some(0, 30));
  writeFileSync(at("held.jsonl"), some(30, 38));
  await drawn("a", 1, { rank: 2 });
  await drawn("b", 2, { rank: 2, alpha: 3 });
  await drawn("c", 3, { rank: 3 });
});

interface Report {
  readonly before: { readonly loss: number };
  readonly after: { readonly loss: number };
  readonly initReport: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

const finetune = async (name: string, ...args: readonly string[]): Promise<Report> => {
  const { code, stdout, stderr } = await cli(
    ...["finetune", "--model", name, "--data", "data.jsonl", "--held-out", "held.jsonl"],
    ...["--adapter", "lora:rank=2", "--batch-size", "4", "--steps", "4", "--eval-limit", "1"],
    ...["--learning-rate", "1e-2"],
    ...["--threads", "1", "--json", ...args],
  );
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Report;
};
/** The same run for all who ask. */
const finetuneOnce = (...args: [string, ...string[]]): (() => Promise<Report>) => {
  let made: Promise<Report> | undefined;
  return () => (made ??= finetune(...args));
};
const lossOf = async (name: string, adapter: string): Promise<number> => {
  const { code, stdout, stderr } = await cli(
    ...["eval", "--model", name, "--adapter", adapter, "--data", "held.jsonl"],
    ...["--metrics", "perplexity", "--threads", "1", "--json"],
  );
  expect(code, stderr).toBe(0);
  const { metrics } = JSON.parse(stdout) as { metrics: { perplexity: { value: number } } };
  return Math.log(metrics.perplexity.value);
};
const configOf = (name: string): Record<string, unknown> =>
  JSON.parse(readFileSync(at(name, "adapter_config.json"), "utf8")) as Record<string, unknown>;

describe.concurrent("finetune --init", () => {
  const plain = finetuneOnce("model", "--out", "plain");

  it.each([
    ["model", "pissa"],
    ["model", "olora"],
    ["model", "lora-ga:batches=2"],
    ["builtin", "pissa:niter=4"],
  ])(
    "on %s with %s leaves it as it is, and keeps a plain LoRA on the untouched base",
    async (base, init) => {
      const out = `${base}-${init.split(":")[0]}`;
      const report = await finetune(base, "--init", init, "--out", out);
      if (base === "model") {
        expect(report.before.loss).toBeCloseTo((await plain()).before.loss, 4);
      }
      expect(report.after.loss).not.toBeCloseTo(report.before.loss, 3);
      expect([configOf(out)["r"], configOf(out)["init_lora_weights"]]).toEqual([4, true]);
      // Measured beside the reduced base, and again beside the whole one.
      expect(await lossOf(base, out)).toBeCloseTo(report.after.loss, 4);
    },
  );

  it("loftq begins nearer the float model than 4 bits do, and goes on with the same bits", async () => {
    const args = ["--init", "loftq:iterations=3", "--load-in-4bit"];
    const report = await finetune("model", ...args, "--out", "loftq");
    const { error, errorOfPlain } = report.initReport;
    for (const [path, left] of Object.entries(error!)) {
      expect(left).toBeLessThan(errorOfPlain![path]!);
    }
    expect(configOf("loftq")["r"]).toBe(4);
    // On the float base it is what was trained less the error of 4 bits: as good as there.
    const gained = report.before.loss - report.after.loss;
    const kept = (await plain()).before.loss - (await lossOf("model", "loftq"));
    expect(gained).toBeGreaterThan(0.02);
    expect(kept).toBeGreaterThan(0.5 * gained);
    const stopped = await runCli(
      [
        ...["finetune", "--model", "model", "--data", "data.jsonl", "--held-out", "held.jsonl"],
        ...["--adapter", "lora:rank=2", "--batch-size", "4", "--steps", "4", "--eval-limit", "1"],
        ...["--learning-rate", "1e-2"],
        ...["--threads", "1", "--json", ...args, "--out", "stopped", "--save-every", "1"],
      ],
      {
        cwd: root,
        watch: (text, child) => {
          if (/step 1\/4/.test(text)) child.kill("SIGINT");
        },
      },
    );
    expect([0, 130]).toContain(stopped.code);
    const resumed = await cli("finetune", "--resume", "stopped", "--json");
    expect(resumed.code, resumed.stderr).toBe(0);
    const name = "adapter_model.safetensors";
    expect(readFileSync(at("stopped", name)).equals(readFileSync(at("loftq", name)))).toBe(true);
  });
});

const products = async (name: string) => {
  const loaded = await loadAdapter(files, at(name), model);
  const { parts } = plainLora(name, loaded);
  return new Map(
    [...parts].map(([path, part]) => {
      const { a, b } = factorsOf(part, loaded.params);
      return [path, multiply(b, a).data.map((x) => x * part.scale)] as const;
    }),
  );
};

describe.concurrent("plasticity adapter", () => {
  it("combines adapters with weights, and the model takes the result", async () => {
    const { code, stdout, stderr } = await cli(
      ...["adapter", "combine", "a", "b", "c", "--model", "model", "--method", "cat"],
      ...["--weights", "1,-0.5,2", "--out", "sum", "--json"],
    );
    expect(code, stderr).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ out: "sum", method: "cat", layers: 2 });
    expect([configOf("sum")["r"], configOf("sum")["lora_alpha"]]).toEqual([7, 7]);
    const [sum, a, b, c] = [
      await products("sum"),
      await products("a"),
      await products("b"),
      await products("c"),
    ];
    for (const [path, numbers] of sum) {
      numbers.forEach((x, i) => {
        const wanted = a.get(path)![i]! - 0.5 * b.get(path)![i]! + 2 * c.get(path)![i]!;
        expect(x).toBeCloseTo(wanted, 5);
      });
    }
    expect(await lossOf("model", "sum")).toBeGreaterThan(0);
  });

  it("combines by TIES and tells the energy that a rank keeps", async () => {
    const { code, stdout, stderr } = await cli(
      ...["adapter", "combine", "a", "b", "--model", "model", "--method", "ties-svd"],
      ...["--density", "0.3", "--rank", "3", "--out", "ties"],
    );
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(
      /^Combined 2 adapters by ties-svd: 2 layers of rank 3\.\nEnergy kept in each layer: \d+\.\d % at least\.\nWrote ties/,
    );
    expect(configOf("ties")["r"]).toBe(3);
  });

  it("converts a LoHa as peft does, and compares logits", async () => {
    const { targets, loha } = fixture<{
      targets: readonly string[];
      loha: {
        params: RawTensors;
        cases: readonly { rank: number; ranks: Record<string, number>; made: RawTensors }[];
      };
    }>("adapter-algebra");
    const base = new URL("parity/hf-llama", import.meta.url).pathname;
    await files.makeDirectory(at("loha"));
    const tensors = Object.entries(loha.params).map(
      ([name, raw]) => [`base_model.model.${name}`, tensorOf(raw)] as const,
    );
    await writeSafetensors(files, at("loha", "adapter_model.safetensors"), tensors);
    writeFileSync(
      at("loha", "adapter_config.json"),
      JSON.stringify({ peft_type: "LOHA", r: 2, alpha: 4, target_modules: targets }),
    );
    const { model: llama } = await loadModel(files, base);
    for (const { rank, ranks, made } of loha.cases) {
      const out = `lora-${rank}`;
      const { code, stdout, stderr } = await cli(
        ...["adapter", "convert", "loha", "--model", base, "--threads", "1", "--out", out],
        ...[rank >= 1 ? "--rank" : "--energy", String(rank), "--json"],
      );
      expect(code, stderr).toBe(0);
      const report = JSON.parse(stdout) as {
        layers: { path: string; rank: number; energy: number }[];
        energy: number;
        difference: number;
      };
      expect(Object.fromEntries(report.layers.map((one) => [one.path, one.rank]))).toEqual(ranks);
      if (rank < 1) for (const { energy } of report.layers) expect(energy).toBeGreaterThan(rank);
      const loaded = await loadAdapter(files, at(out), llama);
      for (const [path, part] of plainLora(out, loaded).parts) {
        const ours = factorsOf(part, loaded.params);
        const raw = (name: string) => tensorOf(made[`${path}.${name}.weight`]!);
        const theirs = factorsOf(part, { [part.a]: raw("lora_A"), [part.b]: raw("lora_B") });
        const judge = multiply(theirs.b, theirs.a).data;
        multiply(ours.b, ours.a).data.forEach((x, i) => {
          expect(x).toBeCloseTo(judge[i]!, 5);
        });
      }
    }
    const exact = await cli(
      ...["adapter", "convert", "loha", "--model", base, "--threads", "1", "--energy", "1"],
      ...["--out", "exact", "--tolerance", "1e-4", "--json"],
    );
    expect(exact.code, exact.stderr).toBe(0);
    expect((JSON.parse(exact.stdout) as { difference: number }).difference).toBeLessThan(1e-4);
    const rough = await cli(
      ...["adapter", "convert", "loha", "--model", base, "--threads", "1", "--rank", "1"],
      ...["--out", "rough", "--tolerance", "1e-4"],
    );
    expect(rough.code).toBe(2);
    expect(rough.stderr).toMatch(
      /adapter convert: the logits differ by \d\.\d\de-\d, --tolerance allows 0\.0001 — nothing was written; take a higher rank or energy\.\n$/,
    );
    expect(existsSync(at("rough"))).toBe(false);
  });

  it.each([
    [[], "adapter: say what to do — combine or convert."],
    [["merge"], 'adapter: knows combine and convert, got "merge".'],
    [["combine"], "adapter combine: name the adapter folders to read."],
    [["combine", "a"], "adapter combine: --out is missing — name the folder to write."],
    [
      ["convert", "a", "b", "--rank", "2", "--out", "x"],
      "adapter convert: takes one adapter folder, got 2 — convert one after another.",
    ],
    [
      ["convert", "a", "--density", "0.5", "--out", "x"],
      "adapter convert: --density is of adapter combine — leave it out.",
    ],
    [
      ["convert", "a", "--model", "model", "--out", "x"],
      "convert: give either a rank, or the share of energy to keep.",
    ],
    [
      ["combine", "a", "b", "--weights", "1,x", "--model", "model", "--out", "x"],
      'adapter: --weights must be numbers with commas, as 1,-0.5, got "1,x".',
    ],
    [
      ["combine", "a", "c", "--method", "linear", "--model", "model", "--out", "x"],
      'combine: linear needs equal ranks, and "model.layers.0.self_attn.q_proj" has 2 and 3 — take cat, svd or a method that ends with -svd.',
    ],
    [
      ["combine", "a", "b", "--out", "model"],
      'adapter combine: --out "model" exists already — name a new folder, or remove that one first.',
    ],
  ])("refuses %j in a sentence", async (args, sentence) => {
    // Folders are where the test put them; nothing is opened before all is checked.
    const here = args.map((word) => (/^(a|b|c|x|model)$/.test(word) ? at(word) : word));
    const parsed = parseOptions(adapterCommand, here);
    const output = new Output({ isTerminal: false, hasColor: false, columns: 80, isJson: true });
    const { signal } = new AbortController();
    const act = adapterCommand.run({ host: nodeHost(), output, signal, ...parsed });
    await expect(act).rejects.toThrow(
      new OptionError(sentence.replace('"model"', `"${at("model")}"`)),
    );
  });
});
