/**
 * RoBERTa and XLM-RoBERTa: BERT's blocks with places counted after the padding's id, and other heads.
 *
 * Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019, arXiv:1907.11692;
 * Conneau et al., "Unsupervised Cross-lingual Representation Learning at Scale", ACL 2020,
 * arXiv:1911.02116. Parameter names are those of the released checkpoints.
 */
import { OptionError } from "../errors.ts";
import { add, cast, equal, mul, not, tanh } from "../ir/elementwise.ts";
import { gelu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, slice } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { cumSum } from "../ir/reduce.ts";
import { dropout } from "../nn/dropout.ts";
import { zeros } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { LayerNorm } from "../nn/norm.ts";
import { BertBody, type BertSizes, plain, refuseVariants } from "./bert-layers.ts";
import type { BlockSites } from "./blocks.ts";
import { dropoutRate, layerCount, positive, positiveReal, readConfig, tokenId } from "./config.ts";
import {
  architectureOf,
  childrenOf,
  type HeadConfig,
  headJson,
  linearLayers,
  readHead,
} from "./heads.ts";
import type {
  EncoderHead,
  EncoderModel,
  EncoderOptions,
  EncoderResult,
  EncoderSizes,
  HeadTask,
} from "./model.ts";

export interface RobertaConfig {
  /** Default "roberta". */
  readonly family?: RobertaFamily;
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly dFeedForward: number;
  /** Rows of the table of positions: the longest sequence, the padding's id and one more; 514. */
  readonly positions: number;
  /** Default 1. */
  readonly tokenTypes?: number;
  /** Default 1e-5. */
  readonly epsilon?: number;
  /** Default "gelu". */
  readonly activation?: string;
  /** Share of each layer's output zeroed in training; default 0. */
  readonly dropout?: number;
  /** Default: none, and a pooler. */
  readonly head?: HeadConfig;
  /** The token of padding, from which places are counted; default 1. */
  readonly padId?: number;
}

export type RobertaFamily = "roberta" | "xlm-roberta";

const prefixes: Readonly<Record<RobertaFamily, string>> = {
  roberta: "Roberta",
  "xlm-roberta": "XLMRoberta",
};

function architecturesOf(family: RobertaFamily): Readonly<Record<string, HeadTask | undefined>> {
  const name = prefixes[family];
  return {
    [`${name}Model`]: undefined,
    [`${name}ForMaskedLM`]: "masked-lm",
    [`${name}ForSequenceClassification`]: "sequence-classification",
    [`${name}ForTokenClassification`]: "token-classification",
  };
}

/** The word of a token: a layer, then the embedding as output layer, with a bias of its own. */
class LmHead extends Module {
  readonly bias: Slot;
  readonly dense: Linear;
  readonly layer_norm: LayerNorm;

  constructor({ vocabSize, dModel, epsilon }: BertSizes) {
    super();
    this.bias = this.parameter("bias", [vocabSize], zeros);
    this.dense = this.child("dense", new Linear(dModel, dModel, { init: plain }));
    this.layer_norm = this.child("layer_norm", new LayerNorm(dModel, { epsilon }));
  }

  forward(context: Context, hidden: Value, embedding: Slot): Value {
    const y = this.layer_norm.forward(context, gelu(this.dense.forward(context, hidden)));
    return add(dot(y, context.get(embedding), { transB: true }), context.get(this.bias));
  }
}

/** The class of a text: a layer with tanh, then the output layer. */
class ClassificationHead extends Module {
  readonly dense: Linear;
  readonly out_proj: Linear;
  readonly #dropout: number;

  constructor({ dModel, dropout: rate }: BertSizes, labels: number) {
    super();
    this.#dropout = rate;
    this.dense = this.child("dense", new Linear(dModel, dModel, { init: plain }));
    this.out_proj = this.child("out_proj", new Linear(dModel, labels, { init: plain }));
  }

  forward(context: Context, first: Value): Value {
    const x = dropout(context, first, this.#dropout, this);
    const y = tanh(this.dense.forward(context, x));
    return this.out_proj.forward(context, dropout(context, y, this.#dropout, this.dense));
  }
}

export class Roberta extends Network<Value, EncoderOptions, EncoderResult> implements EncoderModel {
  readonly kind = "encoder";
  readonly family: RobertaFamily;
  readonly sizes: EncoderSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["query", "value"];
  readonly head: EncoderHead | undefined;
  readonly ignored: RegExp;
  readonly blocks: readonly BlockSites[];
  readonly #body: BertBody;
  readonly #padId: number;

  /** @throws OptionError when the table has no place left after the padding's. */
  constructor(config: RobertaConfig) {
    super();
    const { head, padId = 1, positions, family = "roberta" } = config;
    this.family = family;
    this.#padId = padId;
    const maxPositions = positions - padId - 1;
    if (maxPositions < 1) {
      throw new OptionError(
        `${family}: positions are counted after pad_token_id ${padId}, so max_position_embeddings must be at least ${padId + 2}, got ${positions}.`,
      );
    }
    const { vocabSize, dModel, nLayers, nHeads } = config;
    const sizes: BertSizes = {
      vocabSize,
      dModel,
      nLayers,
      nHeads,
      dFeedForward: config.dFeedForward,
      positions,
      tokenTypes: config.tokenTypes ?? 1,
      epsilon: config.epsilon ?? 1e-5,
      activation: config.activation ?? "gelu",
      dropout: config.dropout ?? 0,
    };
    this.sizes = { vocabSize, dModel, nLayers, nHeads, maxPositions };
    this.#body = new BertBody(family, sizes, !head);
    if (head) this.child("roberta", this.#body);
    else for (const [name, child] of childrenOf(this.#body)) this.child(name, child);
    this.head = head && this.#headOf(head, sizes);
    this.targets = linearLayers(this, this.head);
    this.blocks = this.#body.blockSites(this);
    this.tied =
      head?.task === "masked-lm"
        ? {
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
          }
        : {};
    this.ignored = head ? /embeddings\.position_ids$|(^|\.)pooler\./ : /embeddings\.position_ids$/;
    this.config = toJson(config, sizes, padId, family);
  }

  get embedding(): Slot {
    return this.#body.embeddings.word_embeddings.weight;
  }

  #headOf({ task, labels, problem }: HeadConfig, sizes: BertSizes): EncoderHead {
    if (task === "masked-lm") {
      const words = this.child("lm_head", new LmHead(sizes));
      return {
        ...{ task, labels, problem, reads: "each", modules: ["lm_head"] },
        forward: (context, hidden) => words.forward(context, hidden, this.embedding),
      };
    }
    if (task === "sequence-classification") {
      const whole = this.child("classifier", new ClassificationHead(sizes, labels.length));
      return {
        ...{ task, labels, problem, reads: "first", modules: ["classifier"] },
        forward: (context, hidden) => whole.forward(context, hidden),
      };
    }
    const each = this.child("classifier", new Linear(sizes.dModel, labels.length, { init: plain }));
    return {
      ...{ task, labels, problem, reads: "each", modules: ["classifier"] },
      forward: (context, hidden) =>
        each.forward(context, dropout(context, hidden, sizes.dropout, each)),
    };
  }

  protected override pass(context: Context, ids: Value, options: EncoderOptions): EncoderResult {
    const [batch, length] = ids.shape as [number | string, number];
    const { embeddings, pooler } = this.#body;
    const places = options.positions ?? this.#places(ids);
    const positions = embeddings.position_embeddings.forward(context, places);
    const types = options.tokenTypes
      ? embeddings.token_type_embeddings.forward(context, options.tokenTypes)
      : slice(context.get(embeddings.token_type_embeddings.weight), 0, 0, 1);
    const x = this.#body.forward(context, ids, positions, types, options.mask);
    const hidden = options.rows ? gather(x, options.rows) : x;
    if (!pooler) return { hidden };
    const { dModel } = this.sizes;
    const first = slice(reshape(x, [batch, length * dModel]), 1, 0, dModel);
    return { hidden, pooled: tanh(pooler.dense.forward(context, first)) };
  }

  /** padId for padding, padId + 1 … for the others, whatever stands between them. */
  #places(ids: Value): Value {
    const real = cast(not(equal(ids, this.#padId)), "int32");
    return add(mul(cumSum(real, 1), real), this.#padId);
  }
}

function toJson(
  config: RobertaConfig,
  sizes: BertSizes,
  padId: number,
  family: RobertaFamily,
): Record<string, unknown> {
  return {
    architectures: [architectureOf(architecturesOf(family), config.head?.task)],
    model_type: family,
    vocab_size: sizes.vocabSize,
    hidden_size: sizes.dModel,
    num_hidden_layers: sizes.nLayers,
    num_attention_heads: sizes.nHeads,
    intermediate_size: sizes.dFeedForward,
    hidden_act: sizes.activation,
    hidden_dropout_prob: sizes.dropout,
    attention_probs_dropout_prob: 0,
    max_position_embeddings: sizes.positions,
    type_vocab_size: sizes.tokenTypes,
    layer_norm_eps: sizes.epsilon,
    pad_token_id: padId,
    position_embedding_type: "absolute",
    tie_word_embeddings: true,
    ...headJson(config.head),
  };
}

function fromConfig(family: RobertaFamily, json: Readonly<Record<string, unknown>>): Roberta {
  const read = readConfig(family, json);
  const head = readHead(family, json, architecturesOf(family));
  refuseVariants(family, json);
  return new Roberta({
    family,
    vocabSize: read("vocab_size", positive),
    dModel: read("hidden_size", positive),
    nLayers: read("num_hidden_layers", layerCount),
    nHeads: read("num_attention_heads", positive),
    dFeedForward: read("intermediate_size", positive),
    positions: read("max_position_embeddings", positive, 512),
    tokenTypes: read("type_vocab_size", positive, 2),
    epsilon: read("layer_norm_eps", positiveReal, 1e-12),
    activation: String(json["hidden_act"] ?? "gelu"),
    dropout: read("hidden_dropout_prob", dropoutRate, 0.1),
    padId: read("pad_token_id", tokenId, 1),
    ...(head && { head }),
  });
}

/** A RoBERTa from the contents of its config.json; `architectures` says which head it has. */
export function robertaFromConfig(json: Readonly<Record<string, unknown>>): Roberta {
  return fromConfig("roberta", json);
}

/** An XLM-RoBERTa from the contents of its config.json. */
export function xlmRobertaFromConfig(json: Readonly<Record<string, unknown>>): Roberta {
  return fromConfig("xlm-roberta", json);
}
