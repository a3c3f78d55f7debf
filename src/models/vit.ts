/**
 * ViT: a transformer over patches of a picture. DeiT's and DINO's checkpoints of this `model_type` load too.
 *
 * Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR
 * 2021, arXiv:2010.11929. Parameter names are those of the released checkpoints. Heads: a class of each
 * picture, read off the class token; or none, and the pooler.
 */
import { OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { concat, expand, reshape, slice, transpose } from "../ir/layout.ts";
import { type Activation, activationNamed } from "../nn/activation.ts";
import { attention, attentionProbabilities } from "../nn/attention.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { Conv2d } from "../nn/conv.ts";
import { dropout } from "../nn/dropout.ts";
import { normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { LayerNorm } from "../nn/norm.ts";
import { toStatic } from "../tensor/shape.ts";
import { plain, splitHeads } from "./bert-layers.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import {
  dropoutRate,
  layerCount,
  positive,
  positiveReal,
  readConfig,
  refuseQuantized,
} from "./config.ts";
import { childrenOf, type HeadConfig, headJson, linearLayers, readHead } from "./heads.ts";
import type {
  HeadTask,
  PictureHead,
  VisionModel,
  VisionOptions,
  VisionResult,
  VisionSizes,
} from "./model.ts";
import { checkPatches, needPictures, oneOrBoth, patchSequence, readSides } from "./patches.ts";
import { type PeftPaths, renamedParts } from "./peft-paths.ts";

type Json = Readonly<Record<string, unknown>>;

export interface VitConfig {
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly dFeedForward: number;
  /** Height and width of a picture; 224 in the released models. */
  readonly imageSize: readonly [height: number, width: number];
  /** Height and width of a patch. */
  readonly patchSize: readonly [height: number, width: number];
  /** Default 3. */
  readonly channels?: number;
  /** Biases of query, key and value; default true. */
  readonly qkvBias?: boolean;
  /** Default 1e-12. */
  readonly epsilon?: number;
  /** Default "gelu". */
  readonly activation?: string;
  /** Share of each layer's output zeroed in training; default 0. */
  readonly dropout?: number;
  /** Default: none, and a pooler. */
  readonly head?: HeadConfig;
  /** Outputs of the pooler; default dModel. */
  readonly dPooler?: number;
  /** Default "tanh". */
  readonly poolerActivation?: string;
}

type Sizes = Required<Omit<VitConfig, "head">>;

// The head's task is that of a whole input, whatever it is.
const architectures: Readonly<Record<string, HeadTask | undefined>> = {
  ViTForImageClassification: "sequence-classification",
  ViTModel: undefined,
};

class PatchEmbeddings extends Module {
  readonly projection: Conv2d;

  constructor({ channels, dModel, patchSize }: Sizes) {
    super();
    const options = { stride: patchSize, init: plain };
    this.projection = this.child("projection", new Conv2d(channels, dModel, patchSize, options));
  }
}

class Embeddings extends Module {
  readonly cls_token: Slot;
  readonly position_embeddings: Slot;
  readonly patch_embeddings: PatchEmbeddings;
  readonly #sizes: Sizes;

  constructor(sizes: Sizes) {
    super();
    this.#sizes = sizes;
    const { dModel } = sizes;
    this.cls_token = this.parameter("cls_token", [1, 1, dModel], normal(0.02));
    const count = patchesOf(sizes) + 1;
    this.position_embeddings = this.parameter(
      "position_embeddings",
      [1, count, dModel],
      normal(0.02),
    );
    this.patch_embeddings = this.child("patch_embeddings", new PatchEmbeddings(sizes));
  }

  /** (B, C, H, W) → (B·N, D), the class token first. */
  forward(context: Context, pixels: Value): Value {
    const { dModel, dropout: rate } = this.#sizes;
    const [batch] = toStatic(pixels.shape, "vit") as [number];
    const patches = patchSequence(this.patch_embeddings.projection.forward(context, pixels));
    const cls = expand(context.get(this.cls_token), [batch, 1, dModel]);
    const x = add(concat([cls, patches], 1), context.get(this.position_embeddings));
    return dropout(context, reshape(x, [-1, dModel]), rate, this);
  }
}

class SelfAttention extends Module {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;

  constructor({ dModel, qkvBias }: Sizes) {
    super();
    const layer = (): Linear => new Linear(dModel, dModel, { init: plain, bias: qkvBias });
    this.query = this.child("query", layer());
    this.key = this.child("key", layer());
    this.value = this.child("value", layer());
  }
}

/** A linear layer under the name `dense`. */
class Dense extends Module {
  readonly dense: Linear;

  constructor(inFeatures: number, outFeatures: number) {
    super();
    this.dense = this.child("dense", new Linear(inFeatures, outFeatures, { init: plain }));
  }
}

class Attention extends Module {
  readonly attention: SelfAttention;
  readonly output: Dense;

  constructor(sizes: Sizes) {
    super();
    this.attention = this.child("attention", new SelfAttention(sizes));
    this.output = this.child("output", new Dense(sizes.dModel, sizes.dModel));
  }
}

class Layer extends Module {
  readonly attention: Attention;
  readonly intermediate: Dense;
  readonly output: Dense;
  readonly layernorm_before: LayerNorm;
  readonly layernorm_after: LayerNorm;
  readonly #sizes: Sizes;
  readonly #activation: Activation;

  constructor(sizes: Sizes) {
    super();
    this.#sizes = sizes;
    this.#activation = activationNamed(sizes.activation);
    const { dModel, dFeedForward, epsilon } = sizes;
    this.attention = this.child("attention", new Attention(sizes));
    this.intermediate = this.child("intermediate", new Dense(dModel, dFeedForward));
    this.output = this.child("output", new Dense(dFeedForward, dModel));
    this.layernorm_before = this.child("layernorm_before", new LayerNorm(dModel, { epsilon }));
    this.layernorm_after = this.child("layernorm_after", new LayerNorm(dModel, { epsilon }));
  }

  /** (B·N, D) → the same */
  forward(context: Context, x: Value, batch: number): Value {
    const { nHeads, dModel, dropout: rate } = this.#sizes;
    const { attention: self, output } = this.attention;
    const length = (x.shape[0] as number) / batch;
    const before = this.layernorm_before.forward(context, x);
    const heads = (layer: Linear): Value =>
      splitHeads(layer.forward(context, before), batch, length, nHeads, dModel / nHeads);
    const [q, k, v] = [heads(self.query), heads(self.key), heads(self.value)];
    const mixed = attention(q, k, v);
    const merged = reshape(transpose(mixed, [0, 2, 1, 3]), [batch * length, dModel]);
    const size = [batch, length] as const;
    const attended = dropout(context, output.dense.forward(context, merged), rate, this.attention);
    const own = context.site(this.attention, before, attended, {
      ...{ stream: x, size },
      attention: () => attentionProbabilities(q, k),
    });
    const y = add(own, x);
    const after = this.layernorm_after.forward(context, y);
    const inner = this.#activation(this.intermediate.dense.forward(context, after));
    const out = dropout(context, this.output.dense.forward(context, inner), rate, this.output);
    const z = add(context.site(this.output, after, out, { stream: y, size }), y);
    return context.site(this, x, z, { size });
  }
}

class Encoder extends Module {
  readonly layer: ModuleList<Layer>;

  constructor(sizes: Sizes) {
    super();
    const layers = Array.from({ length: sizes.nLayers }, () => new Layer(sizes));
    this.layer = this.child("layer", new ModuleList(layers));
  }
}

class Body extends Module {
  readonly embeddings: Embeddings;
  readonly encoder: Encoder;
  readonly layernorm: LayerNorm;
  readonly pooler: Dense | undefined;

  constructor(sizes: Sizes, hasPooler: boolean) {
    super();
    const { dModel, epsilon, dPooler } = sizes;
    this.embeddings = this.child("embeddings", new Embeddings(sizes));
    this.encoder = this.child("encoder", new Encoder(sizes));
    this.layernorm = this.child("layernorm", new LayerNorm(dModel, { epsilon }));
    this.pooler = hasPooler ? this.child("pooler", new Dense(dModel, dPooler)) : undefined;
  }
}

function patchesOf({ imageSize, patchSize }: Pick<VitConfig, "imageSize" | "patchSize">): number {
  return Math.floor(imageSize[0] / patchSize[0]) * Math.floor(imageSize[1] / patchSize[1]);
}

const peftPaths = renamedParts([
  ["encoder.layer", "layers"],
  ["attention.attention.query", "attention.q_proj"],
  ["attention.attention.key", "attention.k_proj"],
  ["attention.attention.value", "attention.v_proj"],
  ["attention.output.dense", "attention.o_proj"],
  ["intermediate.dense", "mlp.fc1"],
  ["output.dense", "mlp.fc2"],
]);

export class Vit extends Network<Value, VisionOptions, VisionResult> implements VisionModel {
  readonly kind = "vision";
  readonly family = "vit";
  readonly classifier = "ViTForImageClassification";
  readonly sizes: VisionSizes;
  readonly config: Json;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = {};
  readonly defaultTargets: readonly string[] = ["query", "value"];
  readonly head: PictureHead | undefined;
  /** The token of masked patches, and a pooler that the head does not read. */
  readonly ignored: RegExp;
  readonly peftPaths: PeftPaths = peftPaths;
  readonly blocks: readonly BlockSites[];
  readonly #body: Body;
  readonly #sizes: Sizes;
  readonly #output: Linear | undefined;

  /** @throws OptionError when heads do not divide the width, or a patch is larger than a picture. */
  constructor(config: VitConfig) {
    super();
    const { head } = config;
    const sizes: Sizes = {
      ...config,
      channels: config.channels ?? 3,
      qkvBias: config.qkvBias ?? true,
      epsilon: config.epsilon ?? 1e-12,
      activation: config.activation ?? "gelu",
      dropout: config.dropout ?? 0,
      dPooler: config.dPooler ?? config.dModel,
      poolerActivation: config.poolerActivation ?? "tanh",
    };
    if (sizes.dModel % sizes.nHeads !== 0) {
      throw new OptionError(
        `vit: dModel ${sizes.dModel} must be a multiple of nHeads ${sizes.nHeads}.`,
      );
    }
    checkPatches("vit", sizes.imageSize, sizes.patchSize);
    this.#sizes = sizes;
    this.#body = new Body(sizes, !head);
    if (head) this.child("vit", this.#body);
    else for (const [name, child] of childrenOf(this.#body)) this.child(name, child);
    this.#output =
      head &&
      this.child("classifier", new Linear(sizes.dModel, head.labels.length, { init: plain }));
    this.head = head && { ...head, modules: ["classifier"] };
    const { items } = this.#body.encoder.layer;
    this.blocks = blockSites(this, items, sizes.dModel, ({ attention: self, output }) => ({
      attention: self,
      feedForward: output,
    }));
    this.sizes = {
      dModel: sizes.dModel,
      dPooled: head ? sizes.dModel : sizes.dPooler,
      imageSize: sizes.imageSize,
      channels: sizes.channels,
    };
    this.targets = linearLayers(
      this,
      this.head && { ...this.head, task: "sequence-classification" },
    );
    this.ignored = head ? /(^|\.)pooler\.|embeddings\.mask_token$/ : /embeddings\.mask_token$/;
    this.config = toJson(config, sizes);
  }

  protected override pass(context: Context, pixels: Value): VisionResult {
    needPictures("vit", pixels, this.sizes);
    const { embeddings, encoder, layernorm, pooler } = this.#body;
    const { dModel, poolerActivation } = this.#sizes;
    const batch = pixels.shape[0] as number;
    let x = embeddings.forward(context, pixels);
    for (const layer of encoder.layer.items) {
      x = checkpointed(context, x, (input) => layer.forward(context, input, batch));
    }
    const hidden = layernorm.forward(context, x);
    const first = slice(reshape(hidden, [batch, -1]), 1, 0, dModel);
    if (this.#output) {
      return { hidden, pooled: first, logits: this.#output.forward(context, first) };
    }
    const pooled = activationNamed(poolerActivation)(pooler!.dense.forward(context, first));
    return { hidden, pooled };
  }
}

function toJson(config: VitConfig, sizes: Sizes): Json {
  return {
    architectures: [config.head ? "ViTForImageClassification" : "ViTModel"],
    model_type: "vit",
    hidden_size: sizes.dModel,
    num_hidden_layers: sizes.nLayers,
    num_attention_heads: sizes.nHeads,
    intermediate_size: sizes.dFeedForward,
    hidden_act: sizes.activation,
    hidden_dropout_prob: sizes.dropout,
    attention_probs_dropout_prob: 0,
    layer_norm_eps: sizes.epsilon,
    image_size: oneOrBoth(sizes.imageSize),
    patch_size: oneOrBoth(sizes.patchSize),
    num_channels: sizes.channels,
    qkv_bias: sizes.qkvBias,
    pooler_output_size: sizes.dPooler,
    pooler_act: sizes.poolerActivation,
    ...headJson(config.head),
  };
}

/** A ViT from the contents of its config.json; `architectures` says whether it classifies. */
export function vitFromConfig(json: Json): Vit {
  const read = readConfig("vit", json);
  refuseQuantized("vit", json);
  const head = readHead("vit", json, architectures);
  const dModel = read("hidden_size", positive, 768);
  const nHeads = read("num_attention_heads", positive, 12);
  const headDim = json["head_dim"] ?? dModel / nHeads;
  if (headDim !== dModel / nHeads) {
    throw new OptionError(
      `vit: head_dim ${JSON.stringify(headDim)} is not supported, hidden_size over num_attention_heads is ${dModel / nHeads}.`,
    );
  }
  return new Vit({
    dModel,
    nHeads,
    nLayers: read("num_hidden_layers", layerCount, 12),
    dFeedForward: read("intermediate_size", positive, 3072),
    imageSize: readSides("vit", json, "image_size", 224),
    patchSize: readSides("vit", json, "patch_size", 16),
    channels: read("num_channels", positive, 3),
    qkvBias: json["qkv_bias"] !== false,
    epsilon: read("layer_norm_eps", positiveReal, 1e-12),
    activation: String(json["hidden_act"] ?? "gelu"),
    dropout: read("hidden_dropout_prob", dropoutRate, 0),
    dPooler: read("pooler_output_size", positive, dModel),
    poolerActivation: String(json["pooler_act"] ?? "tanh"),
    ...(head && { head }),
  });
}
