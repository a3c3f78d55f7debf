/**
 * Waves of streams that come at the same moment, each with its own prompt of 128 tokens and 128 tokens to make:
 * greedily, to the last, whatever they say. Prompts of one wave begin differently, and so do those of the waves
 * that follow, so that nobody's cache of prefixes knows them.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { nodeHost } from "../../../host/node.ts";
import {
  type LoadedAdapter,
  type LoadModelOptions,
  loadModel,
  lora,
  loraBank,
  type PretrainedModel,
  quantizedAsRead,
  quantizeModel,
  Rng,
  ServeEngine,
  StateError,
  Tensor,
} from "../../../index.ts";
import { built } from "../place.ts";
import { type RealTask, realFiles } from "../real.ts";
import { median } from "../results.ts";
import type { StepResult, Work } from "../serve.ts";
import { engine as ort, versionOf } from "./setup.ts";

const newTokens = 128;
const bank = { slots: 8, maxRank: 8, targetModules: ["q_proj", "v_proj"] } as const;

interface Form {
  readonly streams: number;
  readonly bits?: 8;
  /** One for each stream by turns, or one for all; default: none, and no bank. */
  readonly adapters?: "mixed" | "one";
  readonly isOverHttp?: boolean;
}

const forms: Readonly<Record<string, Form>> = Object.fromEntries(
  [1, 8, 32].flatMap((streams): [string, Form][] => [
    [`serve-${streams}`, { streams }],
    [`serve-${streams}-8bit`, { streams, bits: 8 }],
    [`serve-${streams}-mixed`, { streams, adapters: "mixed" }],
    [`serve-${streams}-one`, { streams, adapters: "one" }],
    [`serve-${streams}-http`, { streams, isOverHttp: true }],
  ]),
);

export const servingNames: readonly string[] = Object.keys(forms);

/** The next prompts of the list, over and over. */
function promptsOf(folder: string, streams: number): () => Int32Array[] {
  const { prompts } = JSON.parse(readFileSync(join(folder, realFiles.task), "utf8")) as RealTask;
  let next = 0;
  return () =>
    Array.from({ length: streams }, () => Int32Array.from(prompts[next++ % prompts.length]!));
}

/** Numbers of a LoRA that is trained no more than in name: both factors drawn. */
function drawn(model: PretrainedModel, seed: number): LoadedAdapter {
  const { maxRank: rank, targetModules } = bank;
  const adapter = lora(model, { rank, alpha: 2 * rank, targetModules });
  const rng = new Rng(seed);
  const params = Object.fromEntries(
    Object.entries(adapter.init(rng)).map(([name, { shape, size }]) => {
      const own = rng.fold(name);
      const numbers = Float32Array.from({ length: size }, () => 0.2 * (own.uniform() - 0.5));
      return [name, new Tensor("float32", shape, numbers)];
    }),
  );
  return { adapter, params };
}

/** @param ask starts a stream and tells of its tokens; resolves when they are all there */
async function wave(
  prompts: readonly Int32Array[],
  ask: (prompt: Int32Array, row: number, onToken: (token: number) => void) => Promise<void>,
): Promise<StepResult> {
  const start = performance.now();
  const first: number[] = [];
  const tokens = await Promise.all(
    prompts.map(async (prompt, row) => {
      const own: number[] = [];
      await ask(prompt, row, (token) => {
        if (own.push(token) === 1) first.push(performance.now() - start);
      });
      if (own.length !== newTokens) {
        throw new StateError(`bench: stream ${row} made ${own.length} tokens, not ${newTokens}.`);
      }
      return own;
    }),
  );
  return { tokens: tokens[0]!, firstMs: median(first) };
}

async function inProcess(form: Form, threads: number, folder: string): Promise<Work> {
  const { streams, bits, adapters } = form;
  const backend = await ort(threads);
  const quantize = bits && ({ bits, activations: "int8" } as const);
  const options: LoadModelOptions = quantize ? { keep: quantizedAsRead(quantize) } : {};
  const host = nodeHost();
  const { model, params } = await loadModel(host.files, folder, options);
  const base = quantize ? quantizeModel(model, params, quantize) : undefined;
  const engine = await ServeEngine.create(model, base?.params ?? params, backend, host.clock, {
    running: streams,
    ...(base && { form: base.context }),
    ...(adapters && { bank: loraBank(model, bank) }),
  });
  const names = Array.from({ length: bank.slots }, (_, i) => `adapter-${i}`);
  for (const [i, name] of adapters ? names.entries() : [])
    engine.loadAdapter(name, drawn(model, i));
  const next = promptsOf(folder, streams);
  const { note, version } = versionOf(backend);
  const about = [
    ...(bits ? ["8 bits in the blocks, activations in int8, float32 head and cache"] : ["float32"]),
    ...(adapters === "mixed" ? [`${names.length} adapters, one stream each by turns`] : []),
    ...(adapters === "one" ? ["one adapter for all"] : []),
    "continuous batch, pages of 64 tokens, the same bits as alone",
  ];
  return {
    version,
    note: [note, ...about].join(", "),
    step: () =>
      wave(next(), async (prompt, row, onToken) => {
        const adapter = names[adapters === "one" ? 0 : row % names.length]!;
        await engine.submit({
          prompt,
          maxNewTokens: newTokens,
          temperature: 0,
          onToken: ({ token }) => onToken(token),
          ...(adapters && { adapter }),
        }).result;
      }),
  };
}

/** `plasticity serve` in a process of its own, asked as clients ask: streams of events through HTTP. */
async function overHttp({ streams }: Form, threads: number, folder: string): Promise<Work> {
  const words = ["serve", "--model", folder, "--name", "bench", "--port", "0", "--no-data"];
  const sizes = ["--concurrent", String(streams), "--max-adapters", "0", "--threads", `${threads}`];
  const child = spawn(process.execPath, [built.main, ...words, ...sizes, "--quiet", "--json"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  process.once("exit", () => child.kill());
  const ended = once(child, "exit").then(([code]) => {
    throw new StateError(`bench: plasticity serve ended before it listened (code ${code}).`);
  });
  const listens = once(createInterface({ input: child.stdout }), "line");
  const [line] = (await Promise.race([listens, ended])) as [string];
  ended.catch(() => {});
  const { url } = JSON.parse(line) as { url: string };
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as {
    readonly eos_token_id?: number;
  };
  // No stream may end early.
  const logit_bias = config.eos_token_id === undefined ? {} : { [config.eos_token_id]: -100 };
  const next = promptsOf(folder, streams);
  return {
    version: "plasticity serve",
    note: "float32, events streamed, the client in a process of its own",
    step: () =>
      wave(next(), async (prompt, _, onToken) => {
        const response = await fetch(`${url}/completions`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({
            ...{ model: "bench", prompt: [...prompt], max_tokens: newTokens, temperature: 0 },
            ...{ stream: true, logprobs: 0, logit_bias },
          }),
        });
        for await (const event of eventsOf(response)) {
          for (const _token of event.choices[0]?.logprobs?.tokens ?? []) onToken(0);
        }
      }),
    end: async () => {
      child.kill();
      await once(child, "exit");
      return {};
    },
  };
}

interface CompletionEvent {
  readonly choices: readonly { readonly logprobs?: { readonly tokens: readonly string[] } }[];
}

async function* eventsOf(response: Response): AsyncGenerator<CompletionEvent> {
  if (!response.ok) throw new StateError(`bench: ${response.status} ${await response.text()}`);
  let rest = "";
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6)) as CompletionEvent;
    }
  }
}

/** @param name one of `servingNames` */
export function serving(name: string): (threads: number, folder: string) => Promise<Work> {
  const form = forms[name]!;
  return (threads, folder) => (form.isOverHttp ? overHttp : inProcess)(form, threads, folder);
}
