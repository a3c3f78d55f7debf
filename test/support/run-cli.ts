/** The built command line, run as a person or a script runs it. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../../src/data/bpe.ts";
import { nodeHost } from "../../src/host/node.ts";
import { saveModel } from "../../src/models/folder.ts";
import { Llama } from "../../src/models/llama.ts";
import { Rng } from "../../src/tensor/rng.ts";

const packageFolder = fileURLToPath(new URL("../..", import.meta.url));
export const cliPath: string = join(packageFolder, "dist", "cli", "main.js");

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs it to its end.
 * @param watch sees the process, and what it has written to stderr, whenever it writes
 */
export function runCli(
  args: readonly string[],
  options: {
    readonly cwd: string;
    readonly onStart?: (child: ChildProcess) => void;
    readonly watch?: (stderr: string, child: ChildProcess) => void;
    readonly env?: NodeJS.ProcessEnv;
  },
): Promise<Ended> {
  if (!existsSync(cliPath)) {
    throw new Error(
      `${cliPath} is not there — run "npm test", which builds it, or "npm run build".`,
    );
  }
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [cliPath, ...args], {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    options.onStart?.(child);
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      options.watch?.(stderr, child);
    });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

/** A model of some thousand random parameters in a folder, whose tokens are bytes. */
export async function writeTinyModel(folder: string): Promise<void> {
  const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
  const llama = new Llama({
    vocabSize: 257,
    dModel: 16,
    dFeedForward: 32,
    nLayers: 1,
    nHeads: 2,
    maxPositions: 64,
    initializerRange: 0.3,
  });
  await saveModel(nodeHost().files, folder, llama, llama.init(new Rng(1)).params, {
    files: {
      "tokenizer.json": toTokenizerJson(bpe),
      "tokenizer_config.json": toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }),
    },
  });
}
