/**
 * T5: an encoder and a decoder with biases by relative position and RMS norms.
 *
 * Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
 * JMLR 2020, arXiv:1910.10683; the gated form: Shazeer, "GLU Variants Improve Transformer", 2020,
 * arXiv:2002.05202 (T5 v1.1, mT5, Flan-T5). Parameter names are those of the released checkpoints.
 *
 * Scores of attention are not divided by the root of the width. A tied output layer multiplies the
 * hidden states by dModel^-0.5 first. The first block's table of biases serves all blocks of its side.
 */
import { OptionError, ShapeError } from "../errors.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { dropout } from "../nn/dropout.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, type Slot } from "../nn/module.ts";
import type { BlockSites } from "./blocks.ts";
import { dropoutRate, layerCount, positive, positiveReal, readConfig, tokenId } from "./config.ts";
import type {
  DecodeOptions,
  ForwardResult,
  LanguageModelSizes,
  LayerPast,
  Seq2SeqModel,
} from "./model.ts";
import { Stack, type T5Config } from "./t5-layers.ts";

export type { T5Config } from "./t5-layers.ts";

export class T5 extends Module implements Seq2SeqModel {
  readonly kind = "seq2seq";
  readonly family: "t5" | "mt5";
  readonly sizes: LanguageModelSizes;
  readonly startId: number;
  readonly endId: number;
  readonly padId: number;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["q", "v"];
  /** Old checkpoints have a table of the second layer that nothing reads. */
  readonly ignored: RegExp =
    /^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\./;
  readonly shared: Embedding;
  readonly encoder: Stack;
  readonly decoder: Stack;
  readonly lm_head: Linear | undefined;
  /** The encoder's, then the decoder's; their places do not tell attention's probabilities. */
  readonly blocks: readonly BlockSites[];
  readonly #config: T5Config;
  readonly #outputScale: number;

  constructor(config: T5Config) {
    super();
    const { vocabSize, dModel, nHeads, headDim, nLayers, tieEmbeddings = true } = config;
    this.#config = config;
    this.family = config.family ?? "t5";
    this.padId = config.padId ?? 0;
    this.endId = config.endId ?? 1;
    this.startId = config.startId ?? this.padId;
    this.sizes = {
      ...{ vocabSize, dModel, nHeads, headDim, nKvHeads: nHeads },
      nLayers: config.nDecoderLayers ?? nLayers,
      maxPositions: config.maxPositions ?? 512,
    };
    this.shared = this.child("shared", new Embedding(vocabSize, dModel, { init: normal(1) }));
    this.encoder = this.child("encoder", new Stack(config, false));
    this.decoder = this.child("decoder", new Stack(config, true));
    this.blocks = [...this.encoder.blockSites(this), ...this.decoder.blockSites(this)];
    this.targets = new Map(
      [...this.modules()].flatMap(([path, module]): [string, Linear][] =>
        module instanceof Linear ? [[path, module]] : [],
      ),
    );
    this.lm_head = tieEmbeddings
      ? undefined
      : this.child("lm_head", new Linear(dModel, vocabSize, { bias: false, init: normal(1) }));
    this.tied = {
      "encoder.embed_tokens.weight": "shared.weight",
      "decoder.embed_tokens.weight": "shared.weight",
      ...(tieEmbeddings && { "lm_head.weight": "shared.weight" }),
    };
    this.#outputScale = (config.scaleOutputs ?? tieEmbeddings) ? dModel ** -0.5 : 1;
    this.config = toJson(config, this);
  }

  get embedding(): Slot {
    return this.shared.weight;
  }

  #embed(context: Context, ids: Value, stack: Stack): Value {
    const [batch, length] = ids.shape as [number | string, number];
    const rows = typeof batch === "number" ? batch * length : -1;
    const x = reshape(this.shared.forward(context, ids), [rows, this.sizes.dModel]);
    return dropout(context, x, this.#config.dropout ?? 0, stack);
  }

  #end(context: Context, x: Value, stack: Stack): Value {
    const y = stack.final_layer_norm.forward(context, x);
    return dropout(context, y, this.#config.dropout ?? 0, stack.final_layer_norm);
  }

  encode(context: Context, ids: Value, options: { readonly mask?: Value } = {}): Value {
    const [batch, length] = ids.shape as [number | string, number];
    const stack = this.encoder;
    const bias = stack.bias(context, length);
    const mask = options.mask && reshape(options.mask, [batch, 1, 1, length]);
    const size = [batch, length] as const;
    let x = this.#embed(context, ids, stack);
    for (const block of stack.block.items) {
      x = checkpointed(context, x, (input) => {
        const y = block.self.forward(context, input, size, (inner, normed) =>
          inner.mix(context, normed, size, inner.pairs(context, normed, size), {
            bias,
            ...(mask && { mask }),
          }),
        );
        const out = block.feedForward.forward(context, y, size, (inner, z) =>
          inner.forward(context, z),
        );
        return context.site(block, input, out, { size });
      });
    }
    return this.#end(context, x, stack);
  }

  crossed(
    context: Context,
    hidden: Value,
    batch: number | string,
    length: number | string,
  ): LayerPast[] {
    return this.decoder.block.items.map(({ cross }) =>
      cross!.inner.pairs(context, hidden, [batch, length]),
    );
  }

  /** @throws ShapeError when more than one token follows a past. */
  decode(
    context: Context,
    ids: Value,
    source: readonly LayerPast[],
    options: DecodeOptions = {},
  ): ForwardResult {
    const [batch, length] = ids.shape as [number | string, number];
    const { past } = options;
    if (past && length !== 1) {
      throw new ShapeError(`t5: one token at a time follows a past, got ${length}.`);
    }
    const stack = this.decoder;
    const size = [batch, length] as const;
    const bias = stack.bias(context, length);
    const pastMask = past && add(past.mask, stack.pastBias(context, past.distances));
    const sourceLength = source[0]!.keys.shape[2]!;
    const mask = options.mask && reshape(options.mask, [batch, 1, 1, sourceLength]);
    let x = this.#embed(context, ids, stack);
    const present: LayerPast[] = [];
    for (const [i, block] of stack.block.items.entries()) {
      const [y, kv] = checkpointed(context, x, (input): [Value, LayerPast] => {
        let own: LayerPast | undefined;
        let z = block.self.forward(context, input, size, (inner, normed) => {
          own = inner.pairs(context, normed, size);
          return inner.mix(context, normed, size, own, {
            ...{ bias, causal: true },
            ...(past && { past: { ...past.layers[i]!, mask: pastMask! } }),
          });
        });
        z = block.cross!.forward(context, z, size, (inner, normed) =>
          inner.mix(context, normed, size, source[i]!, { ...(mask && { mask }) }),
        );
        const out = block.feedForward.forward(context, z, size, (inner, w) =>
          inner.forward(context, w),
        );
        return [context.site(block, input, out, { size }), own!];
      });
      x = y;
      present.push(kv);
    }
    const last = this.#end(context, x, stack);
    const hidden = options.rows ? gather(last, options.rows) : last;
    const scaled = this.#outputScale === 1 ? hidden : mul(hidden, this.#outputScale);
    const logits = this.lm_head
      ? this.lm_head.forward(context, scaled)
      : dot(scaled, context.get(this.embedding), { transB: true });
    return { logits, hidden, present };
  }
}

function toJson(config: T5Config, model: T5): Record<string, unknown> {
  const { tieEmbeddings = true, feedForward = "relu" } = config;
  return {
    architectures: [
      model.family === "mt5" ? "MT5ForConditionalGeneration" : "T5ForConditionalGeneration",
    ],
    model_type: model.family,
    vocab_size: config.vocabSize,
    d_model: config.dModel,
    d_kv: config.headDim,
    d_ff: config.dFeedForward,
    num_layers: config.nLayers,
    num_decoder_layers: model.sizes.nLayers,
    num_heads: config.nHeads,
    relative_attention_num_buckets: config.buckets ?? 32,
    relative_attention_max_distance: config.maxDistance ?? 128,
    dropout_rate: config.dropout ?? 0,
    layer_norm_epsilon: config.epsilon ?? 1e-6,
    feed_forward_proj: feedForward,
    is_encoder_decoder: true,
    tie_word_embeddings: tieEmbeddings,
    scale_decoder_outputs: config.scaleOutputs ?? tieEmbeddings,
    n_positions: model.sizes.maxPositions,
    pad_token_id: model.padId,
    eos_token_id: model.endId,
    decoder_start_token_id: model.startId,
  };
}

function fromConfig(family: "t5" | "mt5", json: Readonly<Record<string, unknown>>): T5 {
  const read = readConfig(family, json);
  const kind = json["feed_forward_proj"] ?? (family === "mt5" ? "gated-gelu" : "relu");
  if (kind !== "relu" && kind !== "gated-gelu") {
    throw new OptionError(
      `${family}: feed_forward_proj ${JSON.stringify(kind)} is not supported — relu and gated-gelu are.`,
    );
  }
  const nLayers = read("num_layers", layerCount, 6);
  const padId = read("pad_token_id", tokenId, 0);
  const scale = json["scale_decoder_outputs"];
  // transformers 5 writes "tied" for every model; the others are told by what is not scaled, and mT5 never
  // shares its output layer.
  const tieEmbeddings = family === "t5" && json["tie_word_embeddings"] !== false && scale !== false;
  return new T5({
    family,
    vocabSize: read("vocab_size", positive),
    dModel: read("d_model", positive),
    headDim: read("d_kv", positive),
    dFeedForward: read("d_ff", positive),
    nLayers,
    nDecoderLayers: read("num_decoder_layers", layerCount, nLayers),
    nHeads: read("num_heads", positive),
    buckets: read("relative_attention_num_buckets", positive, 32),
    maxDistance: read("relative_attention_max_distance", positive, 128),
    epsilon: read("layer_norm_epsilon", positiveReal, 1e-6),
    feedForward: kind,
    tieEmbeddings,
    scaleOutputs: family === "t5" && typeof scale === "boolean" ? scale : tieEmbeddings,
    dropout: read("dropout_rate", dropoutRate, 0.1),
    maxPositions: read("n_positions", positive, 512),
    padId,
    endId: read("eos_token_id", tokenId, 1),
    startId: read("decoder_start_token_id", tokenId, padId),
  });
}

/** A T5 from the contents of its config.json. */
export function t5FromConfig(json: Readonly<Record<string, unknown>>): T5 {
  return fromConfig("t5", json);
}

/** An mT5 from the contents of its config.json. */
export function mt5FromConfig(json: Readonly<Record<string, unknown>>): T5 {
  return fromConfig("mt5", json);
}
