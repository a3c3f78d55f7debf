/** What is compared with whom, and the limits. */
import type { Measure } from "./results.ts";

export interface Peer {
  /** "own" is another work of ours. */
  readonly kind: "npm" | "python" | "own";
  /** For people, as is its library. */
  readonly name: string;
  readonly library: string;
  /** The program in bench/peers, and its work. */
  readonly script: string;
  readonly work: string;
  readonly remedy: string;
}

export interface Contest {
  readonly group: string;
  readonly work: string;
  /** Sizes, for the note. */
  readonly about?: string;
  /** The work of our worker, and the weights file that both sides read. */
  readonly ours: string;
  readonly weights: WeightsName;
  readonly threads: "all" | 1;
  readonly peer?: Peer;
  readonly rows: readonly Row[];
  readonly tokensPerStep?: number;
  /** Decoded tokens that both sides must have in common at first; default 8, 0 where forms differ. */
  readonly sureTokens?: number;
  /** For sides that take seconds a step. */
  readonly maxRounds?: number;
}

export interface Row {
  readonly unit: Measure;
  readonly limit: number | null;
  /** The limit is on our own number, not on the ratio. */
  readonly isOwn?: boolean;
  /** Time to the first token, of steps that are waves of streams. */
  readonly isFirst?: boolean;
}

/** Made from a path that the user gives (real.ts), with what each peer reads of it. */
export type RealName = "smollm2" | "smollm2-onnx" | "smollm2-gguf";

export type WeightsName = "gpt-tiny" | "lstm" | "cnn" | "gpt2-small" | "none" | RealName;

const npm = (script: string, work: string, name: string): Peer => ({
  kind: "npm",
  name,
  library: script.replace(".mjs", ""),
  script,
  work,
  remedy: 'run "npm run bench:setup".',
});

const torch = (work: string, name = "PyTorch"): Peer => ({
  kind: "python",
  name,
  library: "",
  script: "py/worker.py",
  work,
  remedy: "set PLASTICITY_BENCH_PYTHON to a Python with bench/peers/py/requirements.txt installed.",
});

const transformersJs = (work: string, form: string): Peer => ({
  ...npm("transformers.mjs", work, `transformers.js, ${form}`),
  library: "@huggingface/transformers",
});

const llamaCpp = (work: string, form: string): Peer => ({
  ...npm("llama.mjs", work, `node-llama-cpp, ${form}`),
  library: "node-llama-cpp",
});

const tiny = "tiny GPT";
const small = "GPT-2 small";
const time = (limit: number | null): Contest["rows"] => [{ unit: "ms", limit }];

const gpt = {
  group: "gpt",
  about: "4 layers, d 128, T 128, batch 8, vocabulary 2048",
  weights: "gpt-tiny",
  threads: "all",
} as const;
const lora = {
  group: "lora",
  about: "12 layers, d 768, T 128, batch 2, vocabulary 50257",
  weights: "gpt2-small",
  threads: "all",
} as const;
const decode = {
  group: "decode",
  weights: "gpt2-small",
  threads: "all",
  work: `${small}, decode`,
  about: "128 new tokens after a prompt of 128, float32, greedy",
  ours: "gpt2small-decode",
  tokensPerStep: 128,
} as const;

const real = "SmolLM2-135M";
const realLora = { group: "smollm2", weights: "smollm2", threads: "all" } as const;
const realDecode = {
  group: "smollm2",
  threads: "all",
  about: "128 new tokens after a prompt of 128, greedy, one sequence",
  tokensPerStep: 128,
} as const;
const rate = (limit: number | null): Contest["rows"] => [{ unit: "tokens/s", limit }];

/** On the weights of a real model. */
const realContests: readonly Contest[] = [
  {
    ...realLora,
    work: `${real}, LoRA r 8 on q and v`,
    about: "float32, T 128, batch 2, vocabulary 49152",
    ours: "smollm2-lora",
    peer: torch("smollm2-lora", "PyTorch with PEFT"),
    rows: [
      { unit: "ms", limit: 1 },
      { unit: "MB", limit: 0.7 },
    ],
    maxRounds: 5,
  },
  {
    ...realLora,
    work: `${real}, LoRA r 8 beside 4 bits`,
    about:
      "T 256, batch 4, all linear layers of the blocks in 4 bits, checkpointed blocks, LoRA on q and v",
    ours: "smollm2-lora-4bit",
    rows: [
      { unit: "ms", limit: null },
      // 1.2 GB
      { unit: "MB", limit: 1144, isOwn: true },
    ],
    maxRounds: 3,
  },
  {
    ...realDecode,
    work: `${real}, decode, float32`,
    ours: "smollm2-decode",
    weights: "smollm2",
    peer: torch("smollm2-decode", "transformers on PyTorch, float32"),
    rows: rate(1),
  },
  {
    ...realDecode,
    work: `${real}, decode, float32`,
    ours: "smollm2-decode",
    weights: "smollm2-onnx",
    peer: transformersJs("decode-fp32", "our ONNX export in fp32"),
    rows: rate(1),
  },
  {
    ...realDecode,
    work: `${real}, decode, 8 bits`,
    ours: "smollm2-decode-8bit",
    weights: "smollm2-onnx",
    peer: transformersJs("decode-q8", "our ONNX export in q8"),
    rows: rate(1),
    // Both round activations, each in its own way.
    sureTokens: 0,
  },
  {
    ...realDecode,
    work: `${real}, decode, 4 bits`,
    ours: "smollm2-decode-4bit",
    weights: "smollm2-onnx",
    peer: transformersJs("decode-q4", "our ONNX export in q4"),
    rows: rate(1),
  },
  {
    ...realDecode,
    work: `${real}, decode, float32`,
    ours: "smollm2-decode",
    weights: "smollm2-gguf",
    peer: llamaCpp("decode-f32", "GGUF F32"),
    rows: rate(null),
  },
  {
    ...realDecode,
    work: `${real}, decode, 8 bits`,
    ours: "smollm2-decode-8bit",
    weights: "smollm2-gguf",
    peer: llamaCpp("decode-q8", "GGUF Q8_0"),
    rows: rate(null),
    sureTokens: 0,
  },
  {
    ...realDecode,
    work: `${real}, decode, 4 bits`,
    ours: "smollm2-decode-4bit-int8",
    weights: "smollm2-gguf",
    peer: llamaCpp("decode-given", "the GGUF that was given"),
    rows: rate(null),
    sureTokens: 0,
  },
];

const countOf = (streams: number): string => (streams === 1 ? "one stream" : `${streams} streams`);

const streamsOf = (streams: number) => ({
  group: "serve",
  threads: "all" as const,
  about: `${countOf(streams)} at once, prompts of 128, 128 new tokens each, greedy`,
  tokensPerStep: 128 * streams,
  maxRounds: streams > 8 ? 2 : 5,
});

/** The aim is to be ahead at 8 and 32. */
const waveRows = (streams: number, isAim = true): Contest["rows"] => {
  const limit = isAim && streams > 1 ? 1 : null;
  return [
    { unit: "tokens/s", limit },
    { unit: "ms", limit, isFirst: true },
  ];
};

const own = (work: string, name: string): Peer => ({
  ...{ kind: "own", name, library: "", script: "", work, remedy: "" },
});

/** Streams in one batch, on the weights of a real model. */
const serveContests: readonly Contest[] = [
  ...[1, 8, 32].flatMap((streams): Contest[] => [
    {
      ...streamsOf(streams),
      work: `${real}, ${countOf(streams)}, float32`,
      ours: `serve-${streams}`,
      weights: "smollm2-gguf",
      peer: {
        ...llamaCpp(`serve-f32-${streams}`, "its batching, GGUF F32"),
        script: "llama-serve.mjs",
      },
      rows: waveRows(streams),
      // Of many sequences in a batch, which round otherwise than one alone.
      sureTokens: streams === 1 ? 8 : 2,
    },
    {
      ...streamsOf(streams),
      work: `${real}, ${countOf(streams)}, float32`,
      ours: `serve-${streams}`,
      weights: "smollm2-onnx",
      peer: {
        ...transformersJs(
          `serve-fp32-${streams}`,
          "one batch of equal prompts, our ONNX export in fp32",
        ),
        script: "transformers-serve.mjs",
      },
      rows: waveRows(streams),
    },
    {
      ...streamsOf(streams),
      work: `${real}, ${countOf(streams)}, 8 bits`,
      ours: `serve-${streams}-8bit`,
      weights: "smollm2-gguf",
      peer: {
        ...llamaCpp(`serve-q8-${streams}`, "its batching, GGUF Q8_0"),
        script: "llama-serve.mjs",
      },
      rows: waveRows(streams),
      sureTokens: 0,
    },
  ]),
  {
    ...streamsOf(32),
    work: `${real}, 32 streams with 8 adapters`,
    ours: "serve-32-mixed",
    weights: "smollm2",
    peer: own("serve-32-one", "one adapter for all"),
    rows: waveRows(32, false),
    sureTokens: 128,
  },
  {
    ...streamsOf(32),
    work: `${real}, 32 streams with one adapter`,
    ours: "serve-32-one",
    weights: "smollm2",
    peer: own("serve-32", "no adapter and no bank"),
    rows: waveRows(32, false),
    sureTokens: 0,
  },
  {
    ...streamsOf(32),
    work: `${real}, 32 streams through HTTP`,
    ours: "serve-32-http",
    weights: "smollm2",
    peer: own("serve-32", "the same without HTTP"),
    rows: waveRows(32, false),
    sureTokens: 0,
  },
];

export const contests: readonly Contest[] = [
  {
    ...gpt,
    work: `${tiny}, forward+backward`,
    ours: "gpt-fwdbwd",
    peer: npm("jax-js.mjs", "gpt-fwdbwd", "jax-js wasm as shipped"),
    rows: time(7),
  },
  {
    ...gpt,
    work: `${tiny}, forward+backward, equal threads`,
    ours: "gpt-fwdbwd",
    peer: npm("jax-js.mjs", "gpt-fwdbwd-workers", "jax-js wasm with workers"),
    rows: time(4),
  },
  {
    ...gpt,
    work: `${tiny}, forward+backward, one thread each`,
    ours: "gpt-fwdbwd",
    threads: 1,
    peer: npm("jax-js.mjs", "gpt-fwdbwd", "jax-js wasm as shipped"),
    rows: time(4),
  },
  {
    ...gpt,
    work: `${tiny}, AdamW step`,
    ours: "gpt-adamw",
    peer: npm("tfjs.mjs", "gpt-adamw-plain", "tfjs wasm"),
    rows: time(50),
    maxRounds: 3,
  },
  {
    ...gpt,
    work: `${tiny}, AdamW step`,
    ours: "gpt-adamw",
    peer: npm("tfjs.mjs", "gpt-adamw", "tfjs wasm, gradients transposed by hand"),
    rows: time(null),
    maxRounds: 5,
  },
  {
    ...gpt,
    work: `${tiny}, AdamW step`,
    ours: "gpt-adamw",
    peer: torch("gpt-adamw"),
    rows: time(1),
  },
  {
    group: "lstm",
    work: "LSTM, AdamW step",
    about: "T 128, batch 32, E 256, H 256, vocabulary 2048",
    ours: "lstm-adamw",
    weights: "lstm",
    threads: "all",
    peer: torch("lstm-adamw"),
    rows: time(1),
  },
  {
    group: "cnn",
    work: "CNN, SGD step",
    about: "3 convolutions, batch 32 of 3 × 32 × 32",
    ours: "cnn-sgd",
    weights: "cnn",
    threads: "all",
    peer: torch("cnn-sgd"),
    rows: time(1),
  },
  {
    ...lora,
    work: `${small}, LoRA r 8 on c_attn`,
    ours: "gpt2small-lora",
    peer: torch("gpt2small-lora", "PyTorch with PEFT"),
    rows: [
      { unit: "ms", limit: 1 },
      { unit: "MB", limit: 0.7 },
    ],
  },
  {
    ...lora,
    work: `${small}, LoRA r 8 on q and v`,
    ours: "gpt2small-lora-qv",
    peer: torch("gpt2small-lora-qv"),
    rows: [
      { unit: "ms", limit: 1 },
      { unit: "MB", limit: 0.7 },
    ],
  },
  {
    ...decode,
    peer: torch("gpt2small-decode", "transformers on PyTorch"),
    rows: [{ unit: "tokens/s", limit: 1.3 }],
  },
  {
    ...decode,
    peer: torch("gpt2small-decode-plain", "PyTorch by hand, cache laid out"),
    rows: [{ unit: "tokens/s", limit: null }],
  },
  ...realContests,
  ...serveContests,
];

/** Groups that are not contests of two processes. */
export const ownGroups = ["products", "startup", "memory", "adapters"] as const;

export const groups: readonly string[] = [
  ...new Set([...contests.map(({ group }) => group), ...ownGroups]),
];

/** The contests of a group; without peers, one for each work of ours. */
export function contestsOf(group: string | undefined, withPeers: boolean): readonly Contest[] {
  const wanted = contests.filter((contest) => group === undefined || contest.group === group);
  if (withPeers) return wanted;
  const seen = new Set<string>();
  return wanted
    .filter(({ ours, threads }) => {
      const key = `${ours} ${threads}`;
      return !seen.has(key) && seen.add(key);
    })
    .map(({ peer: _, ...own }) => own);
}
