/** The commands that merge, export and look, run as a person or a script runs them. */
import { type ChildProcess, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lora } from "../src/adapters/lora.ts";
import { saveAdapter } from "../src/adapters/peft.ts";
import { nodeHost } from "../src/host/node.ts";
import { loadModel, readModelConfig, saveModel } from "../src/models/folder.ts";
import { Mamba } from "../src/models/mamba.ts";
import { Rng } from "../src/tensor/rng.ts";
import { Tensor } from "../src/tensor/tensor.ts";

const rootFolder = fileURLToPath(new URL("..", import.meta.url));
const main = join(rootFolder, "dist", "cli", "main.js");
if (!existsSync(main)) {
  throw new Error(`${main} is not there — run "npm test", which builds it, or "npm run build".`);
}
const builtin = join(rootFolder, "models", "builtin");
const parity = join(rootFolder, "test", "parity");
const gpt2 = join(parity, "hf-gpt2");
const tiny = ["--model", join(parity, "hf-llama"), "--adapter", join(parity, "peft-lora")];

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-cli-export-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (name: string): string => join(root, name);

beforeAll(async () => {
  const { model } = await readModelConfig(files, builtin);
  const adapter = lora(model, { rank: 4 });
  const params = adapter.init(new Rng(1));
  for (const [name, { shape, size }] of Object.entries(params)) {
    if (name.includes("lora_B")) {
      params[name] = Tensor.from(new Rng(2).fold(name).normals(size, 0.02), shape);
    }
  }
  await saveAdapter(files, at("adapter"), adapter, params, { base: "builtin" });
});

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

function cli(args: readonly string[], watch?: (child: ChildProcess) => void): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [main, ...args], {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, HF_TOKEN: "hf_secret", HF_HOME: "/somewhere" },
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
    watch?.(child);
  });
}

/** Wrong uses of a command with the sentence that each gets; two processes at a time. */
async function refuses(
  command: string,
  cases: readonly (readonly [args: readonly string[], sentence: string])[],
): Promise<void> {
  const work = cases.values();
  const some = async (): Promise<void> => {
    for (const [args, sentence] of work) {
      const ended = await cli([command, ...args]);
      expect(ended.stderr).toContain(sentence);
      expect(ended.code).toBe(2);
    }
  };
  await Promise.all([some(), some()]);
}

const json = ({ stdout }: Ended): Record<string, unknown> => JSON.parse(stdout);

describe("plasticity merge-adapter", () => {
  it("merges, says how far the logits are apart, and writes a model", async () => {
    const ended = await cli(["merge-adapter", "--adapter", "adapter", "--out", "merged"]);
    expect(ended.code).toBe(0);
    expect(ended.stdout).toMatch(
      /max \|difference\| \/ max \|reference\| +[\d.e-]+, allowed 0\.01/,
    );
    expect(ended.stdout).toContain("Wrote merged: 12 weights changed, stored as F16.");
    expect(readdirSync(at("merged")).sort()).toEqual(readdirSync(builtin).sort());
    const [before, after] = [await loadModel(files, builtin), await loadModel(files, at("merged"))];
    const name = "model.layers.5.self_attn.q_proj.weight";
    expect(after.params[name]!.data).not.toEqual(before.params[name]!.data);
  });

  it("leaves the target absent or complete when it is killed, and clears up at the next run", async () => {
    const args = ["merge-adapter", ...tiny, "--out", "killed"];
    const shards = ["--max-shard-bytes", "300"];
    let half = 0;
    // A kill may come too late on a busy machine: until two came in the middle.
    for (let n = 0; n < 6 && half < 2; n++) {
      const ended = await cli([...args, ...shards], (child) => {
        const temporary = at(`killed.tmp-${child.pid}`);
        const timer = setInterval(() => {
          // At the first file, and at some.
          if (existsSync(temporary) && readdirSync(temporary).length > 6 * half) {
            clearInterval(timer);
            child.kill("SIGKILL");
          }
        }, 1);
        child.on("close", () => clearInterval(timer));
      });
      if (ended.signal === "SIGKILL") half++;
      if (existsSync(at("killed"))) {
        await loadModel(files, at("killed"));
        rmSync(at("killed"), { recursive: true });
      }
      expect(readdirSync(root).filter((name) => name.startsWith("killed.tmp-"))).toHaveLength(
        ended.signal === "SIGKILL" ? 1 : 0,
      );
    }
    expect(half).toBeGreaterThan(0);
    const ended = await cli(args);
    expect(ended.code).toBe(0);
    expect(readdirSync(root).filter((name) => name.startsWith("killed"))).toEqual(["killed"]);
    await loadModel(files, at("killed"));
  });

  it("refuses above the tolerance and writes nothing", async () => {
    const args = [...tiny, "--out", "never", "--tolerance", "1e-9"];
    const ended = await cli(["merge-adapter", ...args]);
    expect(ended.code).toBe(2);
    expect(ended.stderr).toMatch(/merge: the merged weights give other logits: .* allowed is 1e-9/);
    expect(readdirSync(root).filter((name) => name.startsWith("never"))).toEqual([]);
  });

  it("says what is wrong with its options", () =>
    refuses("merge-adapter", [
      [["--out", "x"], "merge-adapter: --adapter is missing — give an adapter folder."],
      [["--adapter", "adapter"], "merge-adapter: --out is missing — name the folder to write."],
      [
        ["--adapter", "adapter", "--out", "adapter"],
        'merge-adapter: --out "adapter" exists already — name a new folder, or remove that one first.',
      ],
      [
        ["--adapter", ".", "--out", "x"],
        ".: not an adapter folder, it has no adapter_config.json.",
      ],
      [
        ["--adapter", "adapter", "--out", "x", "--dtype", "int8"],
        'merge-adapter: --dtype must be keep or float32 or float16 or bfloat16, got "int8".',
      ],
      [["--adapter", "adapter", "--out", "x", "--model", gpt2], "match no layer of this gpt2"],
    ]));
});

describe("plasticity export", () => {
  it("writes an ONNX folder and says how far its logits are apart", async () => {
    const ended = await cli(["export", "--variants", "fp32,q8", "--out", "onnx", "--json"]);
    expect(ended.code).toBe(0);
    const { variants, files: names } = json(ended) as {
      variants: { file: string; difference: { maxRelative: number } }[];
      files: string[];
    };
    expect(variants.map(({ file }) => file)).toEqual(["model.onnx", "model_quantized.onnx"]);
    expect(variants[0]!.difference.maxRelative).toBeLessThan(1e-5);
    for (const name of names) expect(existsSync(join(at("onnx"), name))).toBe(true);
  });

  it("writes an adapter for llama.cpp, which info reads", async () => {
    const args = ["--adapter", "adapter", "--out", "a.gguf", "--dtype", "float16"];
    expect((await cli(["export", "--format", "gguf-lora", ...args])).code).toBe(0);
    const { kind, metadata, tensors } = json(await cli(["info", "a.gguf", "--json"])) as {
      kind: string;
      metadata: Record<string, { value: unknown }>;
      tensors: { name: string; dtype: string }[];
    };
    expect(kind).toBe("gguf");
    expect(metadata["adapter.type"]!.value).toBe("lora");
    expect(tensors).toHaveLength(24);
    expect(tensors[0]).toMatchObject({ name: "blk.0.attn_q.weight.lora_a", dtype: "F16" });
  });

  it("says what is wrong with its options", () =>
    refuses("export", [
      [[], "export: --out is missing — name what to write."],
      [["--out", "adapter"], 'export: --out "adapter" exists already'],
      [
        ["--out", "x", "--variants", "fp32,int4"],
        'export: --variants has "int4" — known are fp32, fp16, q8, q4.',
      ],
      [["--out", "x", "--format", "coreml"], "export: --format must be onnx or gguf or gguf-lora"],
      [["--out", "x.gguf", "--format", "gguf-lora"], "export: --adapter is missing"],
      [
        ["--out", "x", "--format", "gguf-lora", "--adapter", "adapter"],
        'export: --out "x" must end in .gguf, which llama.cpp loads.',
      ],
    ]));
});

describe("plasticity info", () => {
  it("speaks of a state where a model has no attention", async () => {
    const mamba = new Mamba({ vocabSize: 9, dModel: 8, nLayers: 2 });
    await saveModel(files, at("mamba"), mamba, mamba.init(new Rng(1)).params);
    const { stdout } = await cli(["info", "mamba"]);
    // A layer keeps 16 channels of 3 steps and of 16 states.
    expect(stdout).toContain("2 of width 8; no attention, a state of 608 numbers for each text");
    expect(stdout).toContain("no table of them; texts of up to 1048576");
    expect(stdout).not.toContain("heads");
    const { sizes } = json(await cli(["info", "mamba", "--json"])) as { sizes: object };
    expect(sizes).toEqual({
      ...{ vocabSize: 9, dModel: 8, nLayers: 2, maxPositions: 1048576, stateNumbers: 608 },
    });
  });

  it("describes the shipped model", async () => {
    const { stdout } = await cli(["info", "builtin"]);
    expect(stdout).toContain("parameters           5.18 M (5180672)");
    expect(stdout).toContain("6 of width 256; 4 heads of 64, 2 for keys and values");
    expect(stdout).toContain("lm_head.weight = model.embed_tokens.weight");
    expect(stdout).toContain("56 tensors (F16 56), 10.4 MB");
    expect(stdout).toContain("BPE, 4096 tokens, 1 added");
  });

  it("describes an adapter and whether it fits a model", async () => {
    const fits = json(await cli(["info", "adapter", "--model", "builtin", "--json"]));
    expect(fits).toMatchObject({
      kind: "adapter",
      adapterKind: "LORA",
      rank: 4,
      alpha: 8,
      targets: ["q_proj", "v_proj"],
      base: "builtin",
      // 6 layers × 4 × ((256 + 256) + (256 + 128))
      parameters: 21504,
      fits: { fits: true },
    });
    const other = await cli(["info", "adapter", "--model", gpt2]);
    expect(other.stdout).toMatch(/fits .*hf-gpt2 +no: .*match no layer of this gpt2/);
  });

  it("lists tensors of a file, and inputs and operators of an ONNX model", async () => {
    const model = join(builtin, "model.safetensors");
    const listed = await cli(["info", model, "--tensors"]);
    expect(listed.stdout).toMatch(/model\.embed_tokens\.weight +F16 +\[4096, 256\] +2097152/);
    await cli(["export", "--model", gpt2, "--out", "tiny"]);
    const onnx = json(await cli(["info", join("tiny", "onnx", "model.onnx"), "--json"]));
    expect(onnx).toMatchObject({
      kind: "onnx",
      producer: "plasticity",
      opsets: { "": 21, "com.microsoft": 1 },
      nodes: { Gemm: 9, LayerNormalization: 5, Gelu: 2 },
    });
  });

  it("says what is wrong", async () => {
    mkdirSync(at("empty"));
    writeFileSync(at("text.txt"), "hello");
    writeFileSync(at("bad.safetensors"), "hello, world");
    writeFileSync(at("bad.onnx"), "hello, world");
    await refuses("info", [
      [[], 'info: nothing named — give a folder or a file: plasticity info <path>, or "builtin".'],
      [["nowhere"], "nowhere: no such file or folder — check the path."],
      [["empty"], "empty: has neither config.json (a model) nor adapter_config.json (an adapter)"],
      [["text.txt"], 'text.txt: its kind is not known by "txt"'],
      [["bad.safetensors"], "bad.safetensors: a header of"],
      [["bad.onnx"], "— is this an ONNX model?"],
    ]);
  });
});

describe("plasticity doctor", () => {
  it("looks at the machine, measures it, and keeps secrets", async () => {
    const ended = await cli(["doctor", "--skip-webgpu", "--json"]);
    expect(ended.code).toBe(0);
    const { ok, checks, gflops } = json(ended) as {
      ok: boolean;
      checks: { name: string; state: string; found: string }[];
      gflops: Record<string, number>;
    };
    expect(ok).toBe(true);
    const byName = Object.fromEntries(checks.map((check) => [check.name, check]));
    expect(byName["Node"]).toMatchObject({ state: "ok", found: process.version });
    const { version } = JSON.parse(
      readFileSync(join(rootFolder, "node_modules/onnxruntime-node/package.json"), "utf8"),
    );
    expect(byName["onnxruntime-node"]).toMatchObject({ state: "ok", found: version });
    expect(gflops["1"]).toBeGreaterThan(0.5);
    expect(byName["Hugging Face"]!.found).toBe("HF_HOME=/somewhere, HF_TOKEN is set");
    expect(ended.stdout).not.toContain("hf_secret");
  });
});
