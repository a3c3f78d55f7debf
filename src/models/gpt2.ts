/**
 * GPT-2: a decoder with learned positions, pre-norm blocks and tied embeddings.
 *
 * Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Parameter names are
 * those of the released checkpoints; projections are stored (in, out).
 */
import { OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import { gelu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, slice, split, squeeze, transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { indicesTo } from "../nn/attention.ts";
import { dropout } from "../nn/dropout.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal, zeros } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, type Initializer, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { LayerNorm } from "../nn/norm.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import { attend, type BatchSize, runBlocks } from "./causal.ts";
import { flag, layerCount, positive, positiveReal, readConfig, refuseQuantized } from "./config.ts";
import type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
  LayerPast,
} from "./model.ts";

export interface Gpt2Config {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  /** Longest sequence; 1024 in the released models. */
  readonly maxPositions: number;
  /** Width of the feed-forward layer; default 4 · dModel. */
  readonly dFeedForward?: number;
  readonly epsilon?: number;
  readonly dropout?: number;
  readonly activation?: "gelu_new" | "gelu";
}

/** Weights normal, biases zero; projections into the residual stream smaller by √(2 · nLayers). */
function scaled(nLayers: number): Initializer {
  const init = normal(0.02 / Math.sqrt(2 * nLayers));
  return (rng, shape) => (shape.length === 1 ? zeros : init)(rng, shape);
}

const plain: Initializer = (rng, shape) => (shape.length === 1 ? zeros : normal(0.02))(rng, shape);

class Attention extends Module {
  readonly c_attn: Linear;
  readonly c_proj: Linear;
  readonly #nHeads: number;
  readonly #dropout: number;

  constructor({ dModel, nHeads, nLayers, dropout: rate }: Gpt2Config) {
    super();
    this.#nHeads = nHeads;
    this.#dropout = rate ?? 0;
    const into = { inputsFirst: true, init: plain };
    this.c_attn = this.child("c_attn", new Linear(dModel, 3 * dModel, into));
    this.c_proj = this.child(
      "c_proj",
      new Linear(dModel, dModel, { inputsFirst: true, init: scaled(nLayers) }),
    );
  }

  forward(
    context: Context,
    x: Value,
    [batch, length]: BatchSize,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [output: Value, present: LayerPast, probabilities: () => Value] {
    const headDim = this.c_proj.inFeatures / this.#nHeads;
    const joined = this.c_attn.forward(context, x);
    // (B·T, 3·D) → (3, B, H, T, D/H)
    const parts = transpose(
      reshape(joined, [batch, length, 3, this.#nHeads, headDim]),
      [2, 0, 3, 1, 4],
    );
    const [q, keys, values] = split(parts, [1, 1, 1], 0).map((part) => squeeze(part, 0)) as [
      Value,
      Value,
      Value,
    ];
    const present = { keys, values };
    const { mixed, probabilities } = attend(q, present, options, past);
    const y = this.c_proj.forward(context, mixed);
    return [dropout(context, y, this.#dropout, this), present, probabilities];
  }
}

class Mlp extends Module {
  readonly c_fc: Linear;
  readonly c_proj: Linear;
  readonly #config: Gpt2Config;

  constructor(config: Gpt2Config) {
    super();
    this.#config = config;
    const width = config.dFeedForward ?? 4 * config.dModel;
    this.c_fc = this.child(
      "c_fc",
      new Linear(config.dModel, width, { inputsFirst: true, init: plain }),
    );
    this.c_proj = this.child(
      "c_proj",
      new Linear(width, config.dModel, { inputsFirst: true, init: scaled(config.nLayers) }),
    );
  }

  forward(context: Context, x: Value): Value {
    const form = this.#config.activation === "gelu" ? "none" : "tanh";
    const y = this.c_proj.forward(context, gelu(this.c_fc.forward(context, x), form));
    return dropout(context, y, this.#config.dropout ?? 0, this);
  }
}

class Block extends Module {
  readonly ln_1: LayerNorm;
  readonly attn: Attention;
  readonly ln_2: LayerNorm;
  readonly mlp: Mlp;

  constructor(config: Gpt2Config) {
    super();
    const norm = { epsilon: config.epsilon ?? 1e-5 };
    this.ln_1 = this.child("ln_1", new LayerNorm(config.dModel, norm));
    this.attn = this.child("attn", new Attention(config));
    this.ln_2 = this.child("ln_2", new LayerNorm(config.dModel, norm));
    this.mlp = this.child("mlp", new Mlp(config));
  }

  forward(
    context: Context,
    x: Value,
    size: BatchSize,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [Value, LayerPast] {
    const normed = this.ln_1.forward(context, x);
    const [mixed, present, attention] = this.attn.forward(context, normed, size, options, past);
    const y = add(x, context.site(this.attn, normed, mixed, { stream: x, size, attention }));
    const after = this.ln_2.forward(context, y);
    const inner = this.mlp.forward(context, after);
    return [add(y, context.site(this.mlp, after, inner, { stream: y, size })), present];
  }
}

class Transformer extends Module {
  readonly wte: Embedding;
  readonly wpe: Embedding;
  readonly h: ModuleList<Block>;
  readonly ln_f: LayerNorm;

  constructor(config: Gpt2Config) {
    super();
    this.wte = this.child(
      "wte",
      new Embedding(config.vocabSize, config.dModel, { init: normal(0.02) }),
    );
    this.wpe = this.child(
      "wpe",
      new Embedding(config.maxPositions, config.dModel, { init: normal(0.02) }),
    );
    const blocks = Array.from({ length: config.nLayers }, () => new Block(config));
    this.h = this.child("h", new ModuleList(blocks));
    this.ln_f = this.child(
      "ln_f",
      new LayerNorm(config.dModel, { epsilon: config.epsilon ?? 1e-5 }),
    );
  }
}

export class Gpt2 extends Network<Value, ForwardOptions, ForwardResult> implements LanguageModel {
  readonly kind = "causal-lm";
  readonly family = "gpt2";
  readonly transformer: Transformer;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = { "lm_head.weight": "transformer.wte.weight" };
  readonly defaultTargets: readonly string[] = ["c_attn"];
  readonly blocks: readonly BlockSites[];
  readonly #dropout: number;

  constructor(config: Gpt2Config) {
    super();
    if (config.dModel % config.nHeads !== 0) {
      throw new OptionError(
        `gpt2: dModel ${config.dModel} must be a multiple of nHeads ${config.nHeads}.`,
      );
    }
    this.transformer = this.child("transformer", new Transformer(config));
    this.#dropout = config.dropout ?? 0;
    this.blocks = blockSites(this, this.transformer.h.items, config.dModel, ({ attn, mlp }) => ({
      attention: attn,
      feedForward: mlp,
    }));
    this.sizes = {
      vocabSize: config.vocabSize,
      dModel: config.dModel,
      nLayers: config.nLayers,
      nHeads: config.nHeads,
      nKvHeads: config.nHeads,
      headDim: config.dModel / config.nHeads,
      maxPositions: config.maxPositions,
    };
    this.config = toJson(config);
    this.targets = new Map(
      [...this.modules()].flatMap(([path, module]) =>
        module instanceof Linear ? [[path, module]] : [],
      ),
    );
  }

  get embedding(): Slot {
    return this.transformer.wte.weight;
  }

  protected override pass(context: Context, ids: Value, options: ForwardOptions): ForwardResult {
    const size = ids.shape as BatchSize;
    const [, length] = size;
    const { dModel } = this.sizes;
    const { wte, wpe, h, ln_f } = this.transformer;
    let x = wte.forward(context, ids);
    const positions =
      options.positions ?? (typeof length === "string" ? indicesTo(ids.graph, length) : undefined);
    x = positions
      ? add(x, wpe.forward(context, positions))
      : add(x, slice(context.get(wpe.weight), 0, 0, length as number));
    x = dropout(context, reshape(x, [-1, dModel]), this.#dropout, this);
    const { x: y, present } = runBlocks(context, x, size, h.items, options, (block, z, past) =>
      block.forward(context, z, size, options, past),
    );
    const hidden = ln_f.forward(context, options.rows ? gather(y, options.rows) : y);
    return { logits: dot(hidden, context.get(wte.weight), { transB: true }), hidden, present };
  }
}

function toJson(config: Gpt2Config): Record<string, unknown> {
  const rate = config.dropout ?? 0;
  return {
    architectures: ["GPT2LMHeadModel"],
    model_type: "gpt2",
    vocab_size: config.vocabSize,
    n_positions: config.maxPositions,
    n_embd: config.dModel,
    n_layer: config.nLayers,
    n_head: config.nHeads,
    n_inner: config.dFeedForward ?? null,
    activation_function: config.activation ?? "gelu_new",
    layer_norm_epsilon: config.epsilon ?? 1e-5,
    resid_pdrop: rate,
    embd_pdrop: rate,
    attn_pdrop: 0,
    tie_word_embeddings: true,
  };
}

/** A GPT-2 from the contents of its config.json. */
export function gpt2FromConfig(json: Readonly<Record<string, unknown>>): Gpt2 {
  const read = readConfig("gpt2", json);
  refuseQuantized("gpt2", json);
  const activation = json["activation_function"] ?? "gelu_new";
  if (activation !== "gelu_new" && activation !== "gelu" && activation !== "gelu_pytorch_tanh") {
    throw new OptionError(
      `gpt2: activation_function ${JSON.stringify(activation)} is not supported.`,
    );
  }
  if (flag(json["scale_attn_by_inverse_layer_idx"])) {
    throw new OptionError("gpt2: scale_attn_by_inverse_layer_idx is not supported.");
  }
  if (json["tie_word_embeddings"] === false) {
    throw new OptionError("gpt2: tie_word_embeddings false is not supported.");
  }
  if (json["scale_attn_weights"] === false) {
    throw new OptionError("gpt2: scale_attn_weights false is not supported.");
  }
  const inner = json["n_inner"];
  return new Gpt2({
    vocabSize: read("vocab_size", positive),
    dModel: read("n_embd", positive),
    nLayers: read("n_layer", layerCount),
    nHeads: read("n_head", positive),
    maxPositions: read("n_positions", positive, 1024),
    ...(typeof inner === "number" && { dFeedForward: read("n_inner", positive) }),
    epsilon: read("layer_norm_epsilon", positiveReal, 1e-5),
    dropout: 0,
    activation: activation === "gelu" ? "gelu" : "gelu_new",
  });
}
