/**
 * The blocks of BERT, which RoBERTa has too: attention to both sides, then a feed-forward layer, each
 * added to what came in and normalised afterwards.
 */
import { OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { type Activation, activationNamed } from "../nn/activation.ts";
import { attention, attentionProbabilities } from "../nn/attention.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { dropout } from "../nn/dropout.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal, zeros } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, type Initializer, Module, ModuleList } from "../nn/module.ts";
import { LayerNorm } from "../nn/norm.ts";
import { type BlockSites, blockSites } from "./blocks.ts";

export interface BertSizes {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly dFeedForward: number;
  readonly nLayers: number;
  readonly nHeads: number;
  /** Rows of the table of positions. */
  readonly positions: number;
  /** Rows of the table of token types. */
  readonly tokenTypes: number;
  /** Under the root of LayerNorm; 1e-12 in BERT, 1e-5 in RoBERTa. */
  readonly epsilon: number;
  /** By the names of `activationNamed`; "gelu". */
  readonly activation: string;
  /** Share of each layer's output zeroed in training; 0.1 in the released models. */
  readonly dropout: number;
}

/** Weights normal with deviation 0.02, biases zero. */
export const plain: Initializer = (rng, shape) =>
  (shape.length === 1 ? zeros : normal(0.02))(rng, shape);

/** (B·T, H·D) → (B, H, T, D) */
export function splitHeads(
  x: Value,
  batch: number | string,
  length: number | string,
  nHeads: number,
  headDim: number,
): Value {
  return transpose(reshape(x, [batch, length, nHeads, headDim]), [0, 2, 1, 3]);
}

class SelfAttention extends Module {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;

  constructor({ dModel }: BertSizes) {
    super();
    this.query = this.child("query", new Linear(dModel, dModel, { init: plain }));
    this.key = this.child("key", new Linear(dModel, dModel, { init: plain }));
    this.value = this.child("value", new Linear(dModel, dModel, { init: plain }));
  }
}

/** A layer into the residual stream: its output is added and the sum normalised. */
class AddAndNorm extends Module {
  readonly dense: Linear;
  readonly LayerNorm: LayerNorm;
  readonly #dropout: number;

  constructor(inFeatures: number, { dModel, epsilon, dropout: rate }: BertSizes) {
    super();
    this.#dropout = rate;
    this.dense = this.child("dense", new Linear(inFeatures, dModel, { init: plain }));
    this.LayerNorm = this.child("LayerNorm", new LayerNorm(dModel, { epsilon }));
  }

  /** @param site what becomes of the layer's output before it is added */
  forward(context: Context, x: Value, residual: Value, site: (y: Value) => Value): Value {
    const y = dropout(context, this.dense.forward(context, x), this.#dropout, this);
    return this.LayerNorm.forward(context, add(site(y), residual));
  }
}

class Attention extends Module {
  readonly self: SelfAttention;
  readonly output: AddAndNorm;

  constructor(sizes: BertSizes) {
    super();
    this.self = this.child("self", new SelfAttention(sizes));
    this.output = this.child("output", new AddAndNorm(sizes.dModel, sizes));
  }
}

class Intermediate extends Module {
  readonly dense: Linear;

  constructor({ dModel, dFeedForward }: BertSizes) {
    super();
    this.dense = this.child("dense", new Linear(dModel, dFeedForward, { init: plain }));
  }
}

class Layer extends Module {
  readonly attention: Attention;
  readonly intermediate: Intermediate;
  readonly output: AddAndNorm;
  readonly #nHeads: number;
  readonly #activation: Activation;

  constructor(sizes: BertSizes) {
    super();
    this.#nHeads = sizes.nHeads;
    this.#activation = activationNamed(sizes.activation);
    this.attention = this.child("attention", new Attention(sizes));
    this.intermediate = this.child("intermediate", new Intermediate(sizes));
    this.output = this.child("output", new AddAndNorm(sizes.dFeedForward, sizes));
  }

  /** @param mask (B, 1, 1, T) bool */
  forward(
    context: Context,
    x: Value,
    [batch, length]: readonly [number | string, number],
    mask: Value | undefined,
  ): Value {
    const { self, output } = this.attention;
    const width = self.query.outFeatures;
    const heads = (layer: Linear): Value =>
      splitHeads(layer.forward(context, x), batch, length, this.#nHeads, width / this.#nHeads);
    const [q, k, v] = [heads(self.query), heads(self.key), heads(self.value)];
    const masks = { ...(mask && { mask }) };
    const mixed = attention(q, k, v, masks);
    const merged = reshape(transpose(mixed, [0, 2, 1, 3]), [x.shape[0]!, width]);
    const size = [batch, length] as const;
    const probabilities = (): Value => attentionProbabilities(q, k, masks);
    const y = output.forward(context, merged, x, (z) =>
      context.site(this.attention, x, z, { stream: x, size, attention: probabilities }),
    );
    const inner = this.#activation(this.intermediate.dense.forward(context, y));
    const out = this.output.forward(context, inner, y, (z) =>
      context.site(this.output, y, z, { stream: y, size }),
    );
    return context.site(this, x, out, { size });
  }
}

class Embeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly token_type_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;

  constructor(sizes: BertSizes) {
    super();
    const table = (count: number): Embedding => new Embedding(count, sizes.dModel, { init: plain });
    this.word_embeddings = this.child("word_embeddings", table(sizes.vocabSize));
    this.position_embeddings = this.child("position_embeddings", table(sizes.positions));
    this.token_type_embeddings = this.child("token_type_embeddings", table(sizes.tokenTypes));
    this.LayerNorm = this.child(
      "LayerNorm",
      new LayerNorm(sizes.dModel, { epsilon: sizes.epsilon }),
    );
  }
}

class Encoder extends Module {
  readonly layer: ModuleList<Layer>;

  constructor(sizes: BertSizes) {
    super();
    const layers = Array.from({ length: sizes.nLayers }, () => new Layer(sizes));
    this.layer = this.child("layer", new ModuleList(layers));
  }
}

/** A layer on the first token's hidden state, with tanh. */
export class Pooler extends Module {
  readonly dense: Linear;

  constructor({ dModel }: BertSizes) {
    super();
    this.dense = this.child("dense", new Linear(dModel, dModel, { init: plain }));
  }
}

/** Embeddings, blocks and, where the checkpoint has one, the pooler. */
export class BertBody extends Module {
  readonly embeddings: Embeddings;
  readonly encoder: Encoder;
  readonly pooler: Pooler | undefined;
  readonly #sizes: BertSizes;

  /** @throws OptionError when the heads do not divide the width. */
  constructor(family: string, sizes: BertSizes, hasPooler: boolean) {
    super();
    if (sizes.dModel % sizes.nHeads !== 0) {
      throw new OptionError(
        `${family}: dModel ${sizes.dModel} must be a multiple of nHeads ${sizes.nHeads}.`,
      );
    }
    this.#sizes = sizes;
    this.embeddings = this.child("embeddings", new Embeddings(sizes));
    this.encoder = this.child("encoder", new Encoder(sizes));
    this.pooler = hasPooler ? this.child("pooler", new Pooler(sizes)) : undefined;
  }

  /** @param model in whose tree this body stands */
  blockSites(model: Module): BlockSites[] {
    const { items } = this.encoder.layer;
    return blockSites(model, items, this.#sizes.dModel, ({ attention: self, output }) => ({
      attention: self,
      feedForward: output,
    }));
  }

  /**
   * @param positions what is added for the places: (T, D) or (B, T, D)
   * @param types what is added for the token types: (1, D) or (B, T, D)
   * @param mask (B, T) bool
   * @returns (B·T, D)
   */
  forward(
    context: Context,
    ids: Value,
    positions: Value,
    types: Value,
    mask: Value | undefined,
  ): Value {
    const [batch, length] = ids.shape as [number | string, number];
    const { embeddings, encoder } = this;
    const words = embeddings.word_embeddings.forward(context, ids);
    let x = reshape(add(add(words, types), positions), [
      typeof batch === "number" ? batch * length : -1,
      this.#sizes.dModel,
    ]);
    x = embeddings.LayerNorm.forward(context, x);
    x = dropout(context, x, this.#sizes.dropout, embeddings);
    const keys = mask && reshape(mask, [batch, 1, 1, length]);
    for (const layer of encoder.layer.items) {
      x = checkpointed(context, x, (input) => layer.forward(context, input, [batch, length], keys));
    }
    return x;
  }
}

/**
 * Refuses settings of a config.json that change what is computed and are not carried here.
 * @throws OptionError naming the setting.
 */
export function refuseVariants(family: string, json: Readonly<Record<string, unknown>>): void {
  const wanted: Readonly<Record<string, unknown>> = {
    position_embedding_type: "absolute",
    is_decoder: false,
    add_cross_attention: false,
    tie_word_embeddings: true,
  };
  for (const [key, value] of Object.entries(wanted)) {
    const given = json[key] ?? value;
    if (given !== value) {
      throw new OptionError(`${family}: ${key} ${JSON.stringify(given)} is not supported.`);
    }
  }
}
