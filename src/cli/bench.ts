/** `plasticity bench`: how fast and how large, beside other libraries in the same run. */
import { mkdtemp, rm } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { nodeOrt } from "../index.ts";
import { describeMachine } from "./bench/machine.ts";
import { built, placeOf, root } from "./bench/place.ts";
import { groups } from "./bench/plan.ts";
import { realModelVariable } from "./bench/real.ts";
import { report } from "./bench/report.ts";
import { runAll } from "./bench/run.ts";
import { type Command, oneOf, wholeFrom } from "./command.ts";

export const bench: Command = {
  name: "bench",
  summary: "Time and weigh training and decoding, beside other libraries.",
  usage:
    "plasticity bench [--peers] [--group <name>] [--model <path>] [--rounds <n>] [--threads <n>] [--json]",
  example: "plasticity bench --peers --group gpt",
  options: {
    peers: { type: "flag", about: "compare with the libraries in bench/peers, and judge limits" },
    group: {
      type: "string",
      value: "name",
      about: `one group only: ${groups.join(", ")}`,
      check: oneOf(...groups),
    },
    model: {
      type: "string",
      value: "path",
      about: `for the groups smollm2 and serve: SmolLM2-135M-Instruct, a .gguf file or a folder (or ${realModelVariable}); they are skipped without it`,
    },
    rounds: {
      type: "number",
      value: "n",
      about: "rounds, taken in turns by both sides",
      default: 7,
      check: wholeFrom(1, 100),
    },
    threads: {
      type: "number",
      value: "n",
      about: "threads of each side; default all cores",
      check: wholeFrom(1, 1024),
    },
  },
  run: async ({ host, output, options, signal }) => {
    const threads = Number(options["threads"] ?? availableParallelism());
    const rounds = Number(options["rounds"]);
    const group = options["group"] as string | undefined;
    const model = options["model"] as string | undefined;
    const folder = await mkdtemp(join(tmpdir(), "plasticity-bench-"));
    try {
      const outcome = await runAll(placeOf(host, folder, model), built, {
        threads,
        rounds,
        withPeers: options["peers"] === true,
        ...(group !== undefined && { group }),
        signal,
        onProgress: (text) => output.progress(text, true),
      });
      const machine = await describeMachine(root, {
        onnxruntime: (await nodeOrt()).binding.version,
        peers: outcome.peers,
        threads,
        rounds,
        date: new Date(host.clock.now()).toISOString(),
      });
      report(output, machine, outcome);
    } catch (error) {
      if (!signal.aborted) throw error;
      output.warn("bench: stopped.");
      process.exitCode = 130;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
