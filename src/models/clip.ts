/**
 * CLIP: a transformer over pictures and one over texts whose vectors share a space; both, or one alone.
 *
 * Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
 * arXiv:2103.00020. Parameter names are those of the released checkpoints. A text's vector is read at its
 * end token, a picture's at the class token.
 */
import { OptionError } from "../errors.ts";
import { add, cast, div, equal, exp, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { concat, expand, reshape, slice } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { argMax, norm } from "../ir/reduce.ts";
import { indicesTo } from "../nn/attention.ts";
import { Conv2d } from "../nn/conv.ts";
import { Embedding } from "../nn/embedding.ts";
import { constant, normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { LayerNorm } from "../nn/norm.ts";
import { toStatic } from "../tensor/shape.ts";
import type { BlockSites } from "./blocks.ts";
import { ClipEncoder, type TowerSizes } from "./clip-encoder.ts";
import {
  layerCount,
  positive,
  positiveReal,
  readConfig,
  refuseQuantized,
  tokenId,
} from "./config.ts";
import { linearLayers } from "./heads.ts";
import type {
  EncoderModel,
  EncoderOptions,
  EncoderResult,
  EncoderSizes,
  VisionModel,
  VisionOptions,
  VisionResult,
  VisionSizes,
  VisionTextModel,
} from "./model.ts";
import { checkPatches, needPictures, patchSequence, readSides } from "./patches.ts";
import { type PeftPaths, withoutFirstPart } from "./peft-paths.ts";

type Json = Readonly<Record<string, unknown>>;

export interface ClipTextConfig extends TowerSizes {
  readonly vocabSize: number;
  /** Longest text; 77 in the released models. */
  readonly maxPositions: number;
  /** The token that ends a text; 2 stands for the largest id of each text, as in older configurations. */
  readonly endId: number;
  readonly startId: number;
  readonly padId: number;
  /** Length of the projected vector, where there is a projection. */
  readonly dShared: number;
}

export interface ClipVisionConfig extends TowerSizes {
  readonly imageSize: number;
  readonly patchSize: number;
  readonly channels: number;
  readonly dShared: number;
}

class TextEmbeddings extends Module {
  readonly token_embedding: Embedding;
  readonly position_embedding: Embedding;

  constructor({ vocabSize, maxPositions, dModel }: ClipTextConfig) {
    super();
    const init = normal(0.02);
    this.token_embedding = this.child(
      "token_embedding",
      new Embedding(vocabSize, dModel, { init }),
    );
    this.position_embedding = this.child(
      "position_embedding",
      new Embedding(maxPositions, dModel, { init }),
    );
  }
}

class TextTower extends Module {
  readonly embeddings: TextEmbeddings;
  readonly encoder: ClipEncoder;
  readonly final_layer_norm: LayerNorm;
  readonly #config: ClipTextConfig;

  constructor(config: ClipTextConfig) {
    super();
    this.#config = config;
    this.embeddings = this.child("embeddings", new TextEmbeddings(config));
    this.encoder = this.child("encoder", new ClipEncoder(config));
    this.final_layer_norm = this.child(
      "final_layer_norm",
      new LayerNorm(config.dModel, { epsilon: config.epsilon }),
    );
  }

  /** Hidden states (B·T, D) of texts (B, T), and those at their end tokens, (B, D). */
  forward(
    context: Context,
    ids: Value,
    { mask, positions }: EncoderOptions,
  ): { hidden: Value; last: Value } {
    const [batch, length] = ids.shape as [number | string, number];
    const { dModel, endId } = this.#config;
    const { token_embedding, position_embedding } = this.embeddings;
    const places = positions
      ? position_embedding.forward(context, positions)
      : slice(context.get(position_embedding.weight), 0, 0, length);
    const sum = add(token_embedding.forward(context, ids), places);
    const rows = typeof batch === "number" ? batch * length : -1;
    const x = this.encoder.forward(context, reshape(sum, [rows, dModel]), batch, length, {
      causal: true,
      ...(mask && { mask: reshape(mask, [batch, 1, 1, length]) }),
    });
    const hidden = this.final_layer_norm.forward(context, x);
    const scores = endId === 2 ? ids : cast(equal(ids, endId), "int32");
    const ends = add(mul(indicesTo(ids.graph, batch), length), argMax(scores, -1));
    return { hidden, last: gather(hidden, ends) };
  }
}

class VisionEmbeddings extends Module {
  readonly class_embedding: Slot;
  readonly patch_embedding: Conv2d;
  readonly position_embedding: Embedding;

  constructor({ channels, dModel, imageSize, patchSize }: ClipVisionConfig) {
    super();
    const init = normal(0.02);
    this.class_embedding = this.parameter("class_embedding", [dModel], normal(dModel ** -0.5));
    this.patch_embedding = this.child(
      "patch_embedding",
      new Conv2d(channels, dModel, patchSize, { stride: patchSize, bias: false, init }),
    );
    const count = Math.floor(imageSize / patchSize) ** 2 + 1;
    this.position_embedding = this.child(
      "position_embedding",
      new Embedding(count, dModel, { init }),
    );
  }
}

class VisionTower extends Module {
  readonly embeddings: VisionEmbeddings;
  readonly pre_layrnorm: LayerNorm;
  readonly encoder: ClipEncoder;
  readonly post_layernorm: LayerNorm;
  readonly sizes: VisionSizes;

  constructor(config: ClipVisionConfig, dPooled: number) {
    super();
    const { dModel, epsilon, imageSize, patchSize, channels } = config;
    checkPatches("clip", [imageSize, imageSize], [patchSize, patchSize]);
    this.sizes = { dModel, dPooled, imageSize: [imageSize, imageSize], channels };
    this.embeddings = this.child("embeddings", new VisionEmbeddings(config));
    // The checkpoints misspell it.
    this.pre_layrnorm = this.child("pre_layrnorm", new LayerNorm(dModel, { epsilon }));
    this.encoder = this.child("encoder", new ClipEncoder(config));
    this.post_layernorm = this.child("post_layernorm", new LayerNorm(dModel, { epsilon }));
  }

  /** Hidden states (B·N, D) of pictures, and those of their class tokens, normalised, (B, D). */
  forward(context: Context, pixels: Value): { hidden: Value; first: Value } {
    needPictures("clip", pixels, this.sizes);
    const [batch] = toStatic(pixels.shape, "clip") as [number];
    const { class_embedding, patch_embedding, position_embedding } = this.embeddings;
    const { dModel } = this.sizes;
    const patches = patchSequence(patch_embedding.forward(context, pixels));
    const cls = expand(reshape(context.get(class_embedding), [1, 1, dModel]), [batch, 1, dModel]);
    const sum = add(concat([cls, patches], 1), context.get(position_embedding.weight));
    const x = this.pre_layrnorm.forward(context, reshape(sum, [-1, dModel]));
    const hidden = this.encoder.forward(context, x, batch, position_embedding.count);
    const first = slice(reshape(hidden, [batch, -1]), 1, 0, dModel);
    return { hidden, first: this.post_layernorm.forward(context, first) };
  }
}

const projection = (from: number, to: number): Linear =>
  new Linear(from, to, { bias: false, init: normal(from ** -0.5) });

/** Buffers of older checkpoints. */
const positionIds = /embeddings\.position_ids$/;

const textSizes = (config: ClipTextConfig): EncoderSizes => {
  const { vocabSize, dModel, nLayers, nHeads, maxPositions } = config;
  return { vocabSize, dModel, nLayers, nHeads, maxPositions };
};

/** The tower of texts alone; `pooled` is the text's vector, projected where the folder has a projection. */
export class ClipText
  extends Network<Value, EncoderOptions, EncoderResult>
  implements EncoderModel
{
  readonly kind = "encoder";
  readonly family = "clip_text_model";
  readonly sizes: EncoderSizes;
  readonly config: Json;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = {};
  readonly defaultTargets: readonly string[] = ["q_proj", "v_proj"];
  readonly head = undefined;
  readonly ignored: RegExp = positionIds;
  readonly peftPaths?: PeftPaths;
  readonly blocks: readonly BlockSites[];
  readonly #tower: TextTower;
  readonly #projection: Linear | undefined;

  constructor(config: ClipTextConfig, hasProjection: boolean) {
    super();
    this.#tower = this.child("text_model", new TextTower(config));
    this.#projection = hasProjection
      ? this.child("text_projection", projection(config.dModel, config.dShared))
      : undefined;
    if (!hasProjection) this.peftPaths = withoutFirstPart("text_model");
    this.sizes = textSizes(config);
    this.targets = linearLayers(this, undefined);
    this.blocks = this.#tower.encoder.blockSites(this);
    this.config = {
      architectures: [hasProjection ? "CLIPTextModelWithProjection" : "CLIPTextModel"],
      ...textJson(config),
    };
  }

  get embedding(): Slot {
    return this.#tower.embeddings.token_embedding.weight;
  }

  protected override pass(context: Context, ids: Value, options: EncoderOptions): EncoderResult {
    const { hidden, last } = this.#tower.forward(context, ids, options);
    return {
      hidden: options.rows ? gather(hidden, options.rows) : hidden,
      pooled: this.#projection ? this.#projection.forward(context, last) : last,
    };
  }
}

/** The tower of pictures alone; `pooled` is the picture's vector, projected where there is a projection. */
export class ClipVision extends Network<Value, VisionOptions, VisionResult> implements VisionModel {
  readonly kind = "vision";
  readonly family = "clip_vision_model";
  readonly classifier = undefined;
  readonly sizes: VisionSizes;
  readonly config: Json;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = {};
  readonly defaultTargets: readonly string[] = ["q_proj", "v_proj"];
  readonly head = undefined;
  readonly ignored: RegExp = positionIds;
  readonly peftPaths?: PeftPaths;
  readonly blocks: readonly BlockSites[];
  readonly #tower: VisionTower;
  readonly #projection: Linear | undefined;

  constructor(config: ClipVisionConfig, hasProjection: boolean) {
    super();
    const dPooled = hasProjection ? config.dShared : config.dModel;
    this.#tower = this.child("vision_model", new VisionTower(config, dPooled));
    this.#projection = hasProjection
      ? this.child("visual_projection", projection(config.dModel, config.dShared))
      : undefined;
    if (!hasProjection) this.peftPaths = withoutFirstPart("vision_model");
    this.sizes = this.#tower.sizes;
    this.targets = linearLayers(this, undefined);
    this.blocks = this.#tower.encoder.blockSites(this);
    this.config = {
      architectures: [hasProjection ? "CLIPVisionModelWithProjection" : "CLIPVisionModel"],
      ...visionJson(config),
    };
  }

  protected override pass(context: Context, pixels: Value): VisionResult {
    const { hidden, first } = this.#tower.forward(context, pixels);
    return {
      hidden,
      pooled: this.#projection ? this.#projection.forward(context, first) : first,
    };
  }
}

export class Clip extends Module implements VisionTextModel {
  readonly kind = "vision-text";
  readonly family = "clip";
  readonly text: EncoderSizes;
  readonly vision: VisionSizes;
  readonly dShared: number;
  readonly logitScale: Slot;
  readonly config: Json;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = {};
  readonly defaultTargets: readonly string[] = ["q_proj", "v_proj"];
  readonly ignored: RegExp = positionIds;
  readonly blocks: readonly BlockSites[];
  readonly #text: TextTower;
  readonly #vision: VisionTower;
  readonly #textProjection: Linear;
  readonly #visualProjection: Linear;

  /** @param startScale what a new model's `logitScale` begins with; 2.6592 in the paper, log(1 / 0.07) */
  constructor(
    text: ClipTextConfig,
    vision: ClipVisionConfig,
    dShared: number,
    startScale = 2.6592,
  ) {
    super();
    this.dShared = dShared;
    this.logitScale = this.parameter("logit_scale", [], constant(startScale));
    this.#text = this.child("text_model", new TextTower(text));
    this.#vision = this.child("vision_model", new VisionTower(vision, dShared));
    this.#visualProjection = this.child("visual_projection", projection(vision.dModel, dShared));
    this.#textProjection = this.child("text_projection", projection(text.dModel, dShared));
    this.text = textSizes(text);
    this.vision = this.#vision.sizes;
    this.targets = linearLayers(this, undefined);
    this.blocks = [this.#text, this.#vision].flatMap(({ encoder }) => encoder.blockSites(this));
    this.config = {
      architectures: ["CLIPModel"],
      model_type: "clip",
      projection_dim: dShared,
      logit_scale_init_value: startScale,
      text_config: textJson(text),
      vision_config: visionJson(vision),
    };
  }

  embedImages(context: Context, pixels: Value): Value {
    return this.#visualProjection.forward(context, this.#vision.forward(context, pixels).first);
  }

  embedTexts(context: Context, ids: Value, options: { readonly mask?: Value } = {}): Value {
    return this.#textProjection.forward(context, this.#text.forward(context, ids, options).last);
  }
}

/**
 * Cosines of pictures' vectors (B, D) and texts' (C, D), times the learnt factor: (B, C). Softmax over the
 * texts is zero-shot classification, over both sides the loss CLIP was trained with (`contrastiveLoss`).
 */
export function clipLogits(
  model: VisionTextModel,
  context: Context,
  images: Value,
  texts: Value,
): Value {
  const unit = (x: Value): Value => div(x, norm(x, -1, { keepDims: true }));
  const scale = exp(context.get(model.logitScale));
  return mul(dot(unit(images), unit(texts), { transB: true }), scale);
}

function towerJson({
  dModel,
  nLayers,
  nHeads,
  dFeedForward,
  activation,
  epsilon,
}: TowerSizes): Json {
  return {
    hidden_size: dModel,
    num_hidden_layers: nLayers,
    num_attention_heads: nHeads,
    intermediate_size: dFeedForward,
    hidden_act: activation,
    layer_norm_eps: epsilon,
    attention_dropout: 0,
  };
}

function textJson(config: ClipTextConfig): Json {
  return {
    model_type: "clip_text_model",
    ...towerJson(config),
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositions,
    projection_dim: config.dShared,
    bos_token_id: config.startId,
    eos_token_id: config.endId,
    pad_token_id: config.padId,
  };
}

function visionJson(config: ClipVisionConfig): Json {
  return {
    model_type: "clip_vision_model",
    ...towerJson(config),
    image_size: config.imageSize,
    patch_size: config.patchSize,
    num_channels: config.channels,
    projection_dim: config.dShared,
  };
}

type Read = ReturnType<typeof readConfig>;

function readTower(
  json: Json,
  read: Read,
  [dModel, dFeedForward, nHeads]: readonly [number, number, number],
): TowerSizes {
  return {
    dModel: read("hidden_size", positive, dModel),
    dFeedForward: read("intermediate_size", positive, dFeedForward),
    nHeads: read("num_attention_heads", positive, nHeads),
    nLayers: read("num_hidden_layers", layerCount, 12),
    activation: String(json["hidden_act"] ?? "quick_gelu"),
    epsilon: read("layer_norm_eps", positiveReal, 1e-5),
  };
}

function readText(where: string, json: Json): ClipTextConfig {
  const read = readConfig(where, json);
  return {
    ...readTower(json, read, [512, 2048, 8]),
    vocabSize: read("vocab_size", positive, 49408),
    maxPositions: read("max_position_embeddings", positive, 77),
    startId: read("bos_token_id", tokenId, 49406),
    endId: read("eos_token_id", tokenId, 49407),
    padId: read("pad_token_id", tokenId, 1),
    dShared: read("projection_dim", positive, 512),
  };
}

function readVision(where: string, json: Json): ClipVisionConfig {
  const read = readConfig(where, json);
  const square = (key: string, missing: number): number => {
    const [height, width] = readSides(where, json, key, missing);
    if (height === width) return height;
    throw new OptionError(
      `${where}: ${key} ${height}×${width} is not supported, only squares are.`,
    );
  };
  return {
    ...readTower(json, read, [768, 3072, 12]),
    imageSize: square("image_size", 224),
    patchSize: square("patch_size", 32),
    channels: read("num_channels", positive, 3),
    dShared: read("projection_dim", positive, 512),
  };
}

/** @throws OptionError when `architectures` names a class that is not known; the first of `known` is the default. */
function architecture(where: string, json: Json, known: readonly [string, ...string[]]): string {
  const list = json["architectures"];
  const name = Array.isArray(list) && list.length > 0 ? (list[0] as unknown) : known[0];
  if (typeof name === "string" && known.includes(name)) return name;
  throw new OptionError(
    `${where}: architecture ${JSON.stringify(name)} is not supported — ${known.join(", ")} are.`,
  );
}

/** The tower of texts from the contents of its config.json. */
export function clipTextFromConfig(json: Json): ClipText {
  const where = "clip_text_model";
  refuseQuantized(where, json);
  const known = ["CLIPTextModel", "CLIPTextModelWithProjection"] as const;
  return new ClipText(readText(where, json), architecture(where, json, [...known]) === known[1]);
}

/** The tower of pictures from the contents of its config.json. */
export function clipVisionFromConfig(json: Json): ClipVision {
  const where = "clip_vision_model";
  refuseQuantized(where, json);
  const known = ["CLIPVisionModel", "CLIPVisionModelWithProjection"] as const;
  return new ClipVision(
    readVision(where, json),
    architecture(where, json, [...known]) === known[1],
  );
}

/** Both towers. A configuration of older versions may hold a second one, `text_config_dict`, which counts. */
export function clipFromConfig(json: Json): Clip {
  refuseQuantized("clip", json);
  architecture("clip", json, ["CLIPModel"]);
  const part = (key: string): Json => {
    const value = json[`${key}_dict`] ?? json[key] ?? {};
    if (typeof value === "object" && !Array.isArray(value)) return value as Json;
    throw new OptionError(`clip: "${key}" must be an object, got ${JSON.stringify(value)}.`);
  };
  const scale = json["logit_scale_init_value"] ?? 2.6592;
  if (typeof scale !== "number" || !(Math.abs(scale) < 100)) {
    throw new OptionError(
      `clip: "logit_scale_init_value" must be a number between -100 and 100, got ${JSON.stringify(scale)}.`,
    );
  }
  return new Clip(
    readText("clip: text_config", part("text_config")),
    readVision("clip: vision_config", part("vision_config")),
    readConfig("clip", json)("projection_dim", positive, 512),
    scale,
  );
}
