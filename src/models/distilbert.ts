/**
 * DistilBERT: BERT with half the layers, without token types and pooler.
 *
 * Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019,
 * arXiv:1910.01108. Parameter names are those of the released checkpoints.
 */
import { OptionError } from "../errors.ts";
import { add, relu } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, slice, transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { type Activation, activationNamed } from "../nn/activation.ts";
import { attention, attentionProbabilities } from "../nn/attention.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { dropout } from "../nn/dropout.ts";
import { Embedding } from "../nn/embedding.ts";
import { zeros } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { LayerNorm } from "../nn/norm.ts";
import { plain, splitHeads } from "./bert-layers.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import { dropoutRate, layerCount, positive, readConfig, tokenId } from "./config.ts";
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

export interface DistilBertConfig {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly dFeedForward: number;
  /** Longest sequence; 512 in the released models. */
  readonly maxPositions: number;
  /** Default "gelu". */
  readonly activation?: string;
  /** Share of the embeddings' and feed-forward layers' output zeroed in training; default 0. */
  readonly dropout?: number;
  /** The same before the output layer of a classification of texts; default 0. */
  readonly headDropout?: number;
  /** Default: none. */
  readonly head?: HeadConfig;
  /** The token of padding; default 0. */
  readonly padId?: number;
}

const architectures: Readonly<Record<string, HeadTask | undefined>> = {
  DistilBertModel: undefined,
  DistilBertForMaskedLM: "masked-lm",
  DistilBertForSequenceClassification: "sequence-classification",
  DistilBertForTokenClassification: "token-classification",
};

const norm = { epsilon: 1e-12 };

class Attention extends Module {
  readonly q_lin: Linear;
  readonly k_lin: Linear;
  readonly v_lin: Linear;
  readonly out_lin: Linear;

  constructor(dModel: number) {
    super();
    const layer = (): Linear => new Linear(dModel, dModel, { init: plain });
    this.q_lin = this.child("q_lin", layer());
    this.k_lin = this.child("k_lin", layer());
    this.v_lin = this.child("v_lin", layer());
    this.out_lin = this.child("out_lin", layer());
  }
}

class FeedForward extends Module {
  readonly lin1: Linear;
  readonly lin2: Linear;

  constructor({ dModel, dFeedForward }: DistilBertConfig) {
    super();
    this.lin1 = this.child("lin1", new Linear(dModel, dFeedForward, { init: plain }));
    this.lin2 = this.child("lin2", new Linear(dFeedForward, dModel, { init: plain }));
  }
}

class Layer extends Module {
  readonly attention: Attention;
  readonly sa_layer_norm: LayerNorm;
  readonly ffn: FeedForward;
  readonly output_layer_norm: LayerNorm;
  readonly #config: DistilBertConfig;
  readonly #activation: Activation;

  constructor(config: DistilBertConfig) {
    super();
    this.#config = config;
    this.#activation = activationNamed(config.activation ?? "gelu");
    this.attention = this.child("attention", new Attention(config.dModel));
    this.sa_layer_norm = this.child("sa_layer_norm", new LayerNorm(config.dModel, norm));
    this.ffn = this.child("ffn", new FeedForward(config));
    this.output_layer_norm = this.child("output_layer_norm", new LayerNorm(config.dModel, norm));
  }

  forward(
    context: Context,
    x: Value,
    [batch, length]: readonly [number | string, number],
    mask: Value | undefined,
  ): Value {
    const { nHeads, dModel, dropout: rate = 0 } = this.#config;
    const { q_lin, k_lin, v_lin, out_lin } = this.attention;
    const heads = (layer: Linear): Value =>
      splitHeads(layer.forward(context, x), batch, length, nHeads, dModel / nHeads);
    const [q, k, v] = [heads(q_lin), heads(k_lin), heads(v_lin)];
    const masks = { ...(mask && { mask }) };
    const mixed = attention(q, k, v, masks);
    const merged = reshape(transpose(mixed, [0, 2, 1, 3]), [x.shape[0]!, dModel]);
    const size = [batch, length] as const;
    const attended = context.site(this.attention, x, out_lin.forward(context, merged), {
      ...{ stream: x, size },
      attention: () => attentionProbabilities(q, k, masks),
    });
    const y = this.sa_layer_norm.forward(context, add(attended, x));
    const inner = this.#activation(this.ffn.lin1.forward(context, y));
    const out = dropout(context, this.ffn.lin2.forward(context, inner), rate, this.ffn);
    const z = context.site(this.ffn, y, out, { stream: y, size });
    return context.site(this, x, this.output_layer_norm.forward(context, add(z, y)), { size });
  }
}

class Embeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;

  constructor({ vocabSize, dModel, maxPositions }: DistilBertConfig) {
    super();
    const table = (count: number): Embedding => new Embedding(count, dModel, { init: plain });
    this.word_embeddings = this.child("word_embeddings", table(vocabSize));
    this.position_embeddings = this.child("position_embeddings", table(maxPositions));
    this.LayerNorm = this.child("LayerNorm", new LayerNorm(dModel, norm));
  }
}

class Transformer extends Module {
  readonly layer: ModuleList<Layer>;

  constructor(config: DistilBertConfig) {
    super();
    const layers = Array.from({ length: config.nLayers }, () => new Layer(config));
    this.layer = this.child("layer", new ModuleList(layers));
  }
}

class Body extends Module {
  readonly embeddings: Embeddings;
  readonly transformer: Transformer;

  constructor(config: DistilBertConfig) {
    super();
    this.embeddings = this.child("embeddings", new Embeddings(config));
    this.transformer = this.child("transformer", new Transformer(config));
  }
}

/** The bias of the words' output layer, whose weight is the embedding. */
class Projector extends Module {
  readonly bias: Slot;

  constructor(vocabSize: number) {
    super();
    this.bias = this.parameter("bias", [vocabSize], zeros);
  }
}

export class DistilBert
  extends Network<Value, EncoderOptions, EncoderResult>
  implements EncoderModel
{
  readonly kind = "encoder";
  readonly family = "distilbert";
  readonly sizes: EncoderSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["q_lin", "v_lin"];
  readonly head: EncoderHead | undefined;
  readonly blocks: readonly BlockSites[];
  readonly ignored: RegExp = /embeddings\.position_ids$/;
  readonly #body: Body;
  readonly #dropout: number;

  /** @throws OptionError when the heads do not divide the width. */
  constructor(config: DistilBertConfig) {
    super();
    const { head, vocabSize, dModel, nLayers, nHeads, maxPositions } = config;
    if (dModel % nHeads !== 0) {
      throw new OptionError(`distilbert: dim ${dModel} must be a multiple of n_heads ${nHeads}.`);
    }
    this.sizes = { vocabSize, dModel, nLayers, nHeads, maxPositions };
    this.#dropout = config.dropout ?? 0;
    this.#body = new Body(config);
    if (head) this.child("distilbert", this.#body);
    else for (const [name, child] of childrenOf(this.#body)) this.child(name, child);
    this.head = head && this.#headOf(head, config);
    this.targets = linearLayers(this, this.head);
    const { items } = this.#body.transformer.layer;
    this.blocks = blockSites(this, items, dModel, ({ attention: self, ffn }) => ({
      attention: self,
      feedForward: ffn,
    }));
    this.tied =
      head?.task === "masked-lm"
        ? { "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight" }
        : {};
    this.config = toJson(config);
  }

  get embedding(): Slot {
    return this.#body.embeddings.word_embeddings.weight;
  }

  #headOf({ task, labels, problem }: HeadConfig, config: DistilBertConfig): EncoderHead {
    const { dModel, vocabSize } = config;
    const square = (): Linear => new Linear(dModel, dModel, { init: plain });
    if (task === "masked-lm") {
      const activation = activationNamed(config.activation ?? "gelu");
      const transform = this.child("vocab_transform", square());
      const after = this.child("vocab_layer_norm", new LayerNorm(dModel, norm));
      const projector = this.child("vocab_projector", new Projector(vocabSize));
      const modules = ["vocab_transform", "vocab_layer_norm", "vocab_projector"];
      return {
        ...{ task, labels, problem, reads: "each", modules },
        forward: (context, hidden) => {
          const y = after.forward(context, activation(transform.forward(context, hidden)));
          const words = dot(y, context.get(this.embedding), { transB: true });
          return add(words, context.get(projector.bias));
        },
      };
    }
    const isText = task === "sequence-classification";
    const before = isText ? this.child("pre_classifier", square()) : undefined;
    const classifier = this.child("classifier", new Linear(dModel, labels.length, { init: plain }));
    const rate = isText ? (config.headDropout ?? 0) : (config.dropout ?? 0);
    const modules = isText ? ["pre_classifier", "classifier"] : ["classifier"];
    return {
      ...{ task, labels, problem, reads: isText ? "first" : "each", modules },
      forward: (context, hidden) => {
        const x = before ? relu(before.forward(context, hidden)) : hidden;
        return classifier.forward(context, dropout(context, x, rate, classifier));
      },
    };
  }

  protected override pass(context: Context, ids: Value, options: EncoderOptions): EncoderResult {
    const [batch, length] = ids.shape as [number | string, number];
    const { word_embeddings, position_embeddings, LayerNorm: after } = this.#body.embeddings;
    const positions = options.positions
      ? position_embeddings.forward(context, options.positions)
      : slice(context.get(position_embeddings.weight), 0, 0, length);
    let x = reshape(add(word_embeddings.forward(context, ids), positions), [
      typeof batch === "number" ? batch * length : -1,
      this.sizes.dModel,
    ]);
    x = dropout(context, after.forward(context, x), this.#dropout, this.#body.embeddings);
    const keys = options.mask && reshape(options.mask, [batch, 1, 1, length]);
    for (const layer of this.#body.transformer.layer.items) {
      x = checkpointed(context, x, (input) => layer.forward(context, input, [batch, length], keys));
    }
    return { hidden: options.rows ? gather(x, options.rows) : x };
  }
}

function toJson(config: DistilBertConfig): Record<string, unknown> {
  return {
    architectures: [architectureOf(architectures, config.head?.task)],
    model_type: "distilbert",
    vocab_size: config.vocabSize,
    dim: config.dModel,
    hidden_dim: config.dFeedForward,
    n_layers: config.nLayers,
    n_heads: config.nHeads,
    activation: config.activation ?? "gelu",
    dropout: config.dropout ?? 0,
    attention_dropout: 0,
    seq_classif_dropout: config.headDropout ?? 0,
    max_position_embeddings: config.maxPositions,
    sinusoidal_pos_embds: false,
    pad_token_id: config.padId ?? 0,
    tie_word_embeddings: true,
    ...headJson(config.head),
  };
}

/** A DistilBERT from the contents of its config.json; `architectures` says which head it has. */
export function distilBertFromConfig(json: Readonly<Record<string, unknown>>): DistilBert {
  const read = readConfig("distilbert", json);
  const head = readHead("distilbert", json, architectures);
  if ((json["tie_word_embeddings"] ?? true) !== true) {
    throw new OptionError("distilbert: tie_word_embeddings false is not supported.");
  }
  return new DistilBert({
    vocabSize: read("vocab_size", positive),
    dModel: read("dim", positive),
    nLayers: read("n_layers", layerCount),
    nHeads: read("n_heads", positive),
    dFeedForward: read("hidden_dim", positive),
    maxPositions: read("max_position_embeddings", positive, 512),
    activation: String(json["activation"] ?? "gelu"),
    dropout: read("dropout", dropoutRate, 0.1),
    headDropout: read("seq_classif_dropout", dropoutRate, 0.2),
    padId: read("pad_token_id", tokenId, 0),
    ...(head && { head }),
  });
}
