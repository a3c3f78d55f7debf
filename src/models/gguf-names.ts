/**
 * How llama.cpp's files name and lay out what a model folder holds: one table for each family. Names and
 * layouts are those of its convert_hf_to_gguf.py and of the `gguf` package's tensor map.
 */
import { OptionError } from "../errors.ts";

/**
 * Rows of a matrix there, against a folder's: within a head (half, i) → (i, half), for llama.cpp's rotary
 * layout; or (head, part, i) → (part, head, i), for queries, keys and values in one.
 */
export type RowOrder = "queries" | "keys" | "parts";

/** Heads of queries, heads of keys. */
export interface HeadCounts {
  readonly nHeads: number;
  readonly nKvHeads: number;
}

/** A number in both: key of the metadata behind "<architecture>.", key of config.json, type. */
export type NumberKey = readonly [there: string, here: string, type: "uint32" | "float32" | "bool"];

export interface GgufFamily {
  /** `general.architecture`. */
  readonly architecture: string;
  /** `model_type` of config.json. */
  readonly modelType: string;
  readonly className: string;
  /** Paths of modules, with N for a block's number, and the names there. */
  readonly modules: Readonly<Record<string, string>>;
  readonly rows?: Readonly<Record<string, RowOrder>>;
  /** Matrices that a folder stores (in, out). */
  readonly turned?: readonly string[];
  /** Whether norms are stored with 1 added. */
  readonly shiftedNorms?: boolean;
  /** Tensors that are written as float32 whatever is asked for. */
  readonly full?: readonly string[];
  readonly numbers: readonly NumberKey[];
  /** What config.json says beside. */
  readonly fixed?: Readonly<Record<string, unknown>>;
  /** Whether heads have a size of their own: `attention.key_length`. */
  readonly headDim?: boolean;
  /** Whether config.json says if queries have a bias. */
  readonly statesBias?: boolean;
}

const common: readonly NumberKey[] = [
  ["block_count", "num_hidden_layers", "uint32"],
  ["context_length", "max_position_embeddings", "uint32"],
  ["embedding_length", "hidden_size", "uint32"],
  ["feed_forward_length", "intermediate_size", "uint32"],
  ["attention.head_count", "num_attention_heads", "uint32"],
];

const rotary: readonly NumberKey[] = [
  ...common,
  ["attention.head_count_kv", "num_key_value_heads", "uint32"],
  ["rope.freq_base", "rope_theta", "float32"],
  ["attention.layer_norm_rms_epsilon", "rms_norm_eps", "float32"],
];

const ends = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  lm_head: "output",
};

const block = {
  "model.layers.N.input_layernorm": "blk.N.attn_norm",
  "model.layers.N.self_attn.q_proj": "blk.N.attn_q",
  "model.layers.N.self_attn.k_proj": "blk.N.attn_k",
  "model.layers.N.self_attn.v_proj": "blk.N.attn_v",
  "model.layers.N.self_attn.o_proj": "blk.N.attn_output",
  "model.layers.N.post_attention_layernorm": "blk.N.ffn_norm",
  "model.layers.N.mlp.gate_proj": "blk.N.ffn_gate",
  "model.layers.N.mlp.up_proj": "blk.N.ffn_up",
  "model.layers.N.mlp.down_proj": "blk.N.ffn_down",
};

const headNorms = {
  "model.layers.N.self_attn.q_norm": "blk.N.attn_q_norm",
  "model.layers.N.self_attn.k_norm": "blk.N.attn_k_norm",
};

export const ggufFamilies: readonly GgufFamily[] = [
  {
    architecture: "llama",
    modelType: "llama",
    className: "LlamaForCausalLM",
    modules: { ...ends, ...block },
    rows: { "blk.N.attn_q": "queries", "blk.N.attn_k": "keys" },
    numbers: rotary,
    fixed: { hidden_act: "silu", mlp_bias: false },
    headDim: true,
    statesBias: true,
  },
  {
    architecture: "qwen2",
    modelType: "qwen2",
    className: "Qwen2ForCausalLM",
    modules: { ...ends, ...block },
    numbers: rotary,
    fixed: { hidden_act: "silu", use_sliding_window: false },
  },
  {
    architecture: "qwen3",
    modelType: "qwen3",
    className: "Qwen3ForCausalLM",
    modules: { ...ends, ...block, ...headNorms },
    numbers: rotary,
    fixed: { hidden_act: "silu", use_sliding_window: false },
    headDim: true,
    statesBias: true,
  },
  {
    architecture: "gemma3",
    modelType: "gemma3_text",
    className: "Gemma3ForCausalLM",
    modules: {
      ...ends,
      ...block,
      ...headNorms,
      "model.layers.N.post_attention_layernorm": "blk.N.post_attention_norm",
      "model.layers.N.pre_feedforward_layernorm": "blk.N.ffn_norm",
      "model.layers.N.post_feedforward_layernorm": "blk.N.post_ffw_norm",
    },
    shiftedNorms: true,
    numbers: [...rotary, ["attention.sliding_window", "sliding_window", "uint32"]],
    fixed: {
      hidden_activation: "gelu_pytorch_tanh",
      rope_local_base_freq: 10000,
      sliding_window_pattern: 6,
      attn_logit_softcapping: null,
      final_logit_softcapping: null,
    },
    headDim: true,
  },
  {
    architecture: "phi3",
    modelType: "phi3",
    className: "Phi3ForCausalLM",
    modules: {
      ...ends,
      "model.layers.N.input_layernorm": "blk.N.attn_norm",
      "model.layers.N.self_attn.qkv_proj": "blk.N.attn_qkv",
      "model.layers.N.self_attn.o_proj": "blk.N.attn_output",
      "model.layers.N.post_attention_layernorm": "blk.N.ffn_norm",
      "model.layers.N.mlp.gate_up_proj": "blk.N.ffn_up",
      "model.layers.N.mlp.down_proj": "blk.N.ffn_down",
    },
    numbers: [...rotary, ["attention.sliding_window", "sliding_window", "uint32"]],
    fixed: { hidden_act: "silu" },
  },
  {
    architecture: "gpt2",
    modelType: "gpt2",
    className: "GPT2LMHeadModel",
    modules: {
      "transformer.wte": "token_embd",
      "transformer.wpe": "position_embd",
      "transformer.ln_f": "output_norm",
      lm_head: "output",
      "transformer.h.N.ln_1": "blk.N.attn_norm",
      "transformer.h.N.attn.c_attn": "blk.N.attn_qkv",
      "transformer.h.N.attn.c_proj": "blk.N.attn_output",
      "transformer.h.N.ln_2": "blk.N.ffn_norm",
      "transformer.h.N.mlp.c_fc": "blk.N.ffn_up",
      "transformer.h.N.mlp.c_proj": "blk.N.ffn_down",
    },
    turned: ["blk.N.attn_qkv", "blk.N.attn_output", "blk.N.ffn_up", "blk.N.ffn_down"],
    full: ["position_embd"],
    numbers: [
      ["block_count", "n_layer", "uint32"],
      ["context_length", "n_positions", "uint32"],
      ["embedding_length", "n_embd", "uint32"],
      ["feed_forward_length", "n_inner", "uint32"],
      ["attention.head_count", "n_head", "uint32"],
      ["attention.layer_norm_epsilon", "layer_norm_epsilon", "float32"],
    ],
    fixed: { activation_function: "gelu_new" },
  },
  {
    architecture: "gptneox",
    modelType: "gpt_neox",
    className: "GPTNeoXForCausalLM",
    modules: {
      "gpt_neox.embed_in": "token_embd",
      "gpt_neox.final_layer_norm": "output_norm",
      embed_out: "output",
      "gpt_neox.layers.N.input_layernorm": "blk.N.attn_norm",
      "gpt_neox.layers.N.attention.query_key_value": "blk.N.attn_qkv",
      "gpt_neox.layers.N.attention.dense": "blk.N.attn_output",
      "gpt_neox.layers.N.post_attention_layernorm": "blk.N.ffn_norm",
      "gpt_neox.layers.N.mlp.dense_h_to_4h": "blk.N.ffn_up",
      "gpt_neox.layers.N.mlp.dense_4h_to_h": "blk.N.ffn_down",
    },
    rows: { "blk.N.attn_qkv": "parts" },
    numbers: [
      ...common,
      ["attention.layer_norm_epsilon", "layer_norm_eps", "float32"],
      ["use_parallel_residual", "use_parallel_residual", "bool"],
    ],
    fixed: { hidden_act: "gelu", rope_theta: 10000 },
  },
];

/** A tensor's name in parts: block's number out of it, and `weight` or `bias`. */
const parts = /^(.*?)\.(weight|bias)$/;
const numbered = /\.(\d+)\./;

function renamed(
  name: string,
  table: ReadonlyMap<string, string>,
): { readonly name: string; readonly key: string } | undefined {
  const [, path, suffix] = parts.exec(name) ?? [];
  if (path === undefined) return undefined;
  const index = numbered.exec(`${path}.`)?.[1];
  const to = table.get(path.replace(numbered, ".N."));
  if (to === undefined || to.includes(".N.") !== (index !== undefined)) return undefined;
  return { name: `${to.replace(".N.", `.${index}.`)}.${suffix}`, key: to };
}

/** How one tensor of a family is stored there. */
export interface Placement {
  readonly name: string;
  readonly rows: RowOrder | undefined;
  readonly isTurned: boolean;
  /** Added to every number there. */
  readonly shift: number;
  readonly isFull: boolean;
}

function placement(family: GgufFamily, name: string, there: string): Placement {
  return {
    name,
    rows: family.rows?.[there],
    isTurned: name.length > 0 && (family.turned?.includes(there) ?? false),
    shift: family.shiftedNorms && /norm$/.test(there) ? 1 : 0,
    isFull: family.full?.includes(there) ?? false,
  };
}

/** Where a folder's tensor lies there; undefined where llama.cpp has no name for it. */
export function placeThere(family: GgufFamily, slot: string): Placement | undefined {
  const found = renamed(slot, new Map(Object.entries(family.modules)));
  return found && placement(family, found.name, found.key);
}

/** Where a tensor of a file lies in a folder; undefined for one that has no place. */
export function placeHere(family: GgufFamily, name: string): Placement | undefined {
  const back = new Map(Object.entries(family.modules).map(([here, there]) => [there, here]));
  const found = renamed(name, back);
  return found && placement(family, found.name, family.modules[found.key]!);
}

/** The row of a folder's matrix that lies at `row` there. */
function sourceRow(order: RowOrder, row: number, rows: number, heads: HeadCounts): number {
  if (order === "parts") {
    const size = rows / (3 * heads.nHeads);
    const [part, head] = [Math.floor(row / (size * heads.nHeads)), Math.floor(row / size)];
    return ((head % heads.nHeads) * 3 + part) * size + (row % size);
  }
  const size = rows / (order === "queries" ? heads.nHeads : heads.nKvHeads);
  const within = row % size;
  return row - within + (within % 2) * (size / 2) + Math.floor(within / 2);
}

/**
 * Rows in the order of a file, or back.
 * @param numbers (rows, columns)
 * @throws OptionError when the rows do not divide into the heads.
 */
export function reorderRows(
  numbers: Float32Array,
  rows: number,
  order: RowOrder,
  heads: HeadCounts,
  way: "there" | "here",
): Float32Array<ArrayBuffer> {
  const groups =
    order === "parts"
      ? 3 * heads.nHeads
      : 2 * (order === "queries" ? heads.nHeads : heads.nKvHeads);
  if (rows % groups !== 0) {
    throw new OptionError(
      `gguf: ${rows} rows do not divide into ${groups} parts, as ${heads.nHeads} heads and ${heads.nKvHeads} of keys need.`,
    );
  }
  const columns = numbers.length / rows;
  const out = new Float32Array(numbers.length);
  for (let row = 0; row < rows; row++) {
    const own = sourceRow(order, row, rows, heads);
    const [from, to] = way === "there" ? [own, row] : [row, own];
    out.set(numbers.subarray(from * columns, (from + 1) * columns), to * columns);
  }
  return out;
}

/** (rows, columns) → (columns, rows) */
function turn(numbers: Float32Array, rows: number): Float32Array<ArrayBuffer> {
  const columns = numbers.length / rows;
  const out = new Float32Array(numbers.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      out[column * rows + row] = numbers[row * columns + column]!;
    }
  }
  return out;
}

/** Whether a tensor's numbers are the same in both. */
export function isPlain({ rows, isTurned, shift }: Placement, rank: number): boolean {
  return rows === undefined && shift === 0 && !(isTurned && rank === 2);
}

/** A folder's tensor as it is stored there, or back; shape and numbers. */
export function relaid(
  numbers: Float32Array<ArrayBuffer>,
  shape: readonly number[],
  how: Placement,
  heads: HeadCounts,
  way: "there" | "here",
): { readonly shape: readonly number[]; readonly numbers: Float32Array<ArrayBuffer> } {
  if (how.isTurned && shape.length === 2) {
    return { shape: [shape[1]!, shape[0]!], numbers: turn(numbers, shape[0]!) };
  }
  if (how.rows) return { shape, numbers: reorderRows(numbers, shape[0]!, how.rows, heads, way) };
  if (how.shift === 0) return { shape, numbers };
  const shift = way === "there" ? how.shift : -how.shift;
  return { shape, numbers: numbers.map((x) => x + shift) };
}
