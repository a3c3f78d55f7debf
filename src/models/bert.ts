/**
 * BERT: an encoder with learned positions and normalisation after each layer. MiniLM is a small one.
 *
 * Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
 * NAACL 2019, arXiv:1810.04805. Parameter names are those of the released checkpoints. Heads: the words
 * of masked tokens, a class of each text, a class of each token; or none.
 */
import { add, tanh } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, slice } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { type Activation, activationNamed } from "../nn/activation.ts";
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

export interface BertConfig {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly dFeedForward: number;
  /** Longest sequence; 512 in the released models. */
  readonly maxPositions: number;
  /** Default 2. */
  readonly tokenTypes?: number;
  /** Default 1e-12. */
  readonly epsilon?: number;
  /** Default "gelu". */
  readonly activation?: string;
  /** Share of each layer's output zeroed in training; default 0. */
  readonly dropout?: number;
  /** Default: none, and a pooler. */
  readonly head?: HeadConfig;
  /** The token of padding; default 0. */
  readonly padId?: number;
}

const architectures: Readonly<Record<string, HeadTask | undefined>> = {
  BertModel: undefined,
  BertForMaskedLM: "masked-lm",
  BertForPreTraining: "masked-lm",
  BertForSequenceClassification: "sequence-classification",
  BertForTokenClassification: "token-classification",
};

class Transform extends Module {
  readonly dense: Linear;
  readonly LayerNorm: LayerNorm;

  constructor({ dModel, epsilon }: BertSizes) {
    super();
    this.dense = this.child("dense", new Linear(dModel, dModel, { init: plain }));
    this.LayerNorm = this.child("LayerNorm", new LayerNorm(dModel, { epsilon }));
  }
}

/** The word of a token: a layer, then the embedding as output layer, with a bias of its own. */
class Predictions extends Module {
  readonly bias: Slot;
  readonly transform: Transform;
  readonly #activation: Activation;

  constructor(sizes: BertSizes) {
    super();
    this.#activation = activationNamed(sizes.activation);
    this.bias = this.parameter("bias", [sizes.vocabSize], zeros);
    this.transform = this.child("transform", new Transform(sizes));
  }

  forward(context: Context, hidden: Value, embedding: Slot): Value {
    const { dense, LayerNorm } = this.transform;
    const y = LayerNorm.forward(context, this.#activation(dense.forward(context, hidden)));
    return add(dot(y, context.get(embedding), { transB: true }), context.get(this.bias));
  }
}

class PredictionHead extends Module {
  readonly predictions: Predictions;

  constructor(sizes: BertSizes) {
    super();
    this.predictions = this.child("predictions", new Predictions(sizes));
  }
}

export class Bert extends Network<Value, EncoderOptions, EncoderResult> implements EncoderModel {
  readonly kind = "encoder";
  readonly family = "bert";
  readonly sizes: EncoderSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["query", "value"];
  readonly head: EncoderHead | undefined;
  /** Buffers, and what a checkpoint has for a head or a pooler that is not used. */
  readonly ignored: RegExp;
  readonly blocks: readonly BlockSites[];
  readonly #body: BertBody;

  constructor(config: BertConfig) {
    super();
    const { head } = config;
    const { vocabSize, dModel, nLayers, nHeads, maxPositions } = config;
    const sizes: BertSizes = {
      vocabSize,
      dModel,
      nLayers,
      nHeads,
      dFeedForward: config.dFeedForward,
      positions: maxPositions,
      tokenTypes: config.tokenTypes ?? 2,
      epsilon: config.epsilon ?? 1e-12,
      activation: config.activation ?? "gelu",
      dropout: config.dropout ?? 0,
    };
    this.sizes = { vocabSize, dModel, nLayers, nHeads, maxPositions };
    const hasPooler = !head || head.task === "sequence-classification";
    this.#body = new BertBody(this.family, sizes, hasPooler);
    // Without a head the parts of the body are the model's own, as in the checkpoint of a BertModel.
    if (head) this.child("bert", this.#body);
    else for (const [name, child] of childrenOf(this.#body)) this.child(name, child);
    this.head = head && this.#headOf(head, sizes);
    this.targets = linearLayers(this, this.head);
    this.blocks = this.#body.blockSites(this);
    const isWords = head?.task === "masked-lm";
    this.tied = isWords
      ? {
          "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
          "cls.predictions.decoder.bias": "cls.predictions.bias",
        }
      : {};
    this.ignored = isWords
      ? /embeddings\.position_ids$|(^|\.)pooler\.|^cls\.seq_relationship\./
      : /embeddings\.position_ids$/;
    this.config = toJson(config, sizes);
  }

  get embedding(): Slot {
    return this.#body.embeddings.word_embeddings.weight;
  }

  #headOf(head: HeadConfig, sizes: BertSizes): EncoderHead {
    const { task, labels, problem } = head;
    if (task === "masked-lm") {
      const { predictions } = this.child("cls", new PredictionHead(sizes));
      const forward = (context: Context, hidden: Value): Value =>
        predictions.forward(context, hidden, this.embedding);
      return { task, labels, problem, reads: "each", modules: ["cls"], forward };
    }
    const classifier = this.child(
      "classifier",
      new Linear(sizes.dModel, labels.length, { init: plain }),
    );
    const reads = task === "sequence-classification" ? "first" : "each";
    return {
      ...{ task, labels, problem, reads, modules: ["classifier"] },
      forward: (context, hidden) => {
        const x = this.#body.pooler ? this.#pool(context, hidden) : hidden;
        return classifier.forward(context, dropout(context, x, sizes.dropout, classifier));
      },
    };
  }

  #pool(context: Context, first: Value): Value {
    return tanh(this.#body.pooler!.dense.forward(context, first));
  }

  protected override pass(context: Context, ids: Value, options: EncoderOptions): EncoderResult {
    const [batch, length] = ids.shape as [number | string, number];
    const { position_embeddings, token_type_embeddings } = this.#body.embeddings;
    const positions = options.positions
      ? position_embeddings.forward(context, options.positions)
      : slice(context.get(position_embeddings.weight), 0, 0, length);
    const types = options.tokenTypes
      ? token_type_embeddings.forward(context, options.tokenTypes)
      : slice(context.get(token_type_embeddings.weight), 0, 0, 1);
    const x = this.#body.forward(context, ids, positions, types, options.mask);
    const hidden = options.rows ? gather(x, options.rows) : x;
    if (!this.#body.pooler) return { hidden };
    const first = slice(reshape(x, [batch, length * this.sizes.dModel]), 1, 0, this.sizes.dModel);
    return { hidden, pooled: this.#pool(context, first) };
  }
}

function toJson(config: BertConfig, sizes: BertSizes): Record<string, unknown> {
  return {
    architectures: [architectureOf(architectures, config.head?.task)],
    model_type: "bert",
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
    pad_token_id: config.padId ?? 0,
    position_embedding_type: "absolute",
    tie_word_embeddings: true,
    ...headJson(config.head),
  };
}

/** A BERT from the contents of its config.json; `architectures` says which head it has. */
export function bertFromConfig(json: Readonly<Record<string, unknown>>): Bert {
  const read = readConfig("bert", json);
  const head = readHead("bert", json, architectures);
  refuseVariants("bert", json);
  return new Bert({
    vocabSize: read("vocab_size", positive),
    dModel: read("hidden_size", positive),
    nLayers: read("num_hidden_layers", layerCount),
    nHeads: read("num_attention_heads", positive),
    dFeedForward: read("intermediate_size", positive),
    maxPositions: read("max_position_embeddings", positive, 512),
    tokenTypes: read("type_vocab_size", positive, 2),
    epsilon: read("layer_norm_eps", positiveReal, 1e-12),
    activation: String(json["hidden_act"] ?? "gelu"),
    dropout: read("hidden_dropout_prob", dropoutRate, 0.1),
    padId: read("pad_token_id", tokenId, 0),
    ...(head && { head }),
  });
}
