/**
 * ResNet: convolutions with shortcuts and batch normalisation, of basic blocks (18, 34) or bottlenecks
 * (50 and deeper).
 *
 * He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385. As `transformers`
 * has it: the stride is in a bottleneck's second convolution (v1.5) unless `downsample_in_bottleneck`.
 * Parameter names are those of the released checkpoints; running statistics are state.
 */
import { FormatError, OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { maxPool } from "../ir/linear.ts";
import { type Activation, activationNamed } from "../nn/activation.ts";
import { Conv2d } from "../nn/conv.ts";
import { fans, kaimingUniform } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, type Initializer, Module, ModuleList } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { BatchNorm2d } from "../nn/norm.ts";
import { globalAvgPool } from "../nn/pool.ts";
import { oneOf, positive, readConfig, refuseQuantized } from "./config.ts";
import { childrenOf, type HeadConfig, headJson, linearLayers, readHead } from "./heads.ts";
import type {
  HeadTask,
  PictureHead,
  VisionModel,
  VisionOptions,
  VisionResult,
  VisionSizes,
} from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

const layerTypes = ["bottleneck", "basic"] as const;

export interface ResNetConfig {
  /** Channels after the first convolution; 64. */
  readonly dEmbedding: number;
  /** Channels of each stage. */
  readonly widths: readonly number[];
  /** Blocks of each stage. */
  readonly depths: readonly number[];
  /** Default "bottleneck". */
  readonly layerType?: (typeof layerTypes)[number];
  /** Default "relu". */
  readonly activation?: string;
  /** Default 3. */
  readonly channels?: number;
  /** The first stage halves the picture too; default false. */
  readonly downsampleInFirstStage?: boolean;
  /** The stride of a bottleneck is in its first convolution (v1); default false. */
  readonly downsampleInBottleneck?: boolean;
  /** Default: none. */
  readonly head?: HeadConfig;
}

type Sizes = Required<Omit<ResNetConfig, "head">>;
type Statistics = NonNullable<VisionOptions["statistics"]>;

// The head's task is that of a whole input, whatever it is.
const architectures: Readonly<Record<string, HeadTask | undefined>> = {
  ResNetForImageClassification: "sequence-classification",
  ResNetModel: undefined,
};

/** He et al. 2015 by the outputs, as this family's models are begun. */
const kaimingFanOut: Initializer = (rng, shape) => {
  const count = shape.reduce((a, b) => a * b, 1);
  return rng.normals(count, Math.sqrt(2 / fans(shape).fanOut));
};

/** A convolution, then batch normalisation. */
class ConvNorm extends Module {
  readonly convolution: Conv2d;
  readonly normalization: BatchNorm2d;

  constructor(from: number, to: number, kernel: number, stride: number) {
    super();
    const options = {
      stride,
      padding: Math.floor(kernel / 2),
      bias: false,
      init: kaimingFanOut,
    };
    this.convolution = this.child("convolution", new Conv2d(from, to, kernel, options));
    this.normalization = this.child("normalization", new BatchNorm2d(to));
  }

  forward(context: Context, x: Value, statistics: Statistics): Value {
    return this.normalization.forward(context, this.convolution.forward(context, x), statistics);
  }
}

/** Convolutions beside a shortcut; a basic block of two, a bottleneck of three. */
class Block extends Module {
  readonly shortcut: ConvNorm | undefined;
  readonly layer: ModuleList<ConvNorm>;
  readonly #activation: Activation;

  constructor(from: number, to: number, stride: number, sizes: Sizes) {
    super();
    this.#activation = activationNamed(sizes.activation);
    const isChanged = from !== to || stride !== 1;
    this.shortcut = isChanged
      ? this.child("shortcut", new ConvNorm(from, to, 1, stride))
      : undefined;
    this.layer = this.child("layer", new ModuleList(convolutionsOf(from, to, stride, sizes)));
  }

  forward(context: Context, x: Value, statistics: Statistics): Value {
    const inner = this.layer.items.reduce((y, layer, i) => {
      const z = layer.forward(context, y, statistics);
      // Inside the model's own activation, relu between convolutions whatever the block's is.
      return i === this.layer.items.length - 1 ? z : activationNamed("relu")(z);
    }, x);
    const residual = this.shortcut ? this.shortcut.forward(context, x, statistics) : x;
    return this.#activation(add(inner, residual));
  }
}

function convolutionsOf(from: number, to: number, stride: number, sizes: Sizes): ConvNorm[] {
  if (sizes.layerType === "basic") {
    return [new ConvNorm(from, to, 3, stride), new ConvNorm(to, to, 3, 1)];
  }
  const narrow = Math.floor(to / 4);
  const [first, second] = sizes.downsampleInBottleneck ? [stride, 1] : [1, stride];
  return [
    new ConvNorm(from, narrow, 1, first),
    new ConvNorm(narrow, narrow, 3, second),
    new ConvNorm(narrow, to, 1, 1),
  ];
}

class Stage extends Module {
  readonly layers: ModuleList<Block>;

  constructor(from: number, to: number, depth: number, stride: number, sizes: Sizes) {
    super();
    const blocks = Array.from({ length: depth }, (_, i) =>
      i === 0 ? new Block(from, to, stride, sizes) : new Block(to, to, 1, sizes),
    );
    this.layers = this.child("layers", new ModuleList(blocks));
  }
}

class Stem extends Module {
  readonly embedder: ConvNorm;

  constructor({ channels, dEmbedding }: Sizes) {
    super();
    this.embedder = this.child("embedder", new ConvNorm(channels, dEmbedding, 7, 2));
  }
}

class Encoder extends Module {
  readonly stages: ModuleList<Stage>;

  constructor(sizes: Sizes) {
    super();
    const stages = sizes.widths.map((width, i) => {
      const stride = i > 0 || sizes.downsampleInFirstStage ? 2 : 1;
      const from = i === 0 ? sizes.dEmbedding : sizes.widths[i - 1]!;
      return new Stage(from, width, sizes.depths[i]!, stride, sizes);
    });
    this.stages = this.child("stages", new ModuleList(stages));
  }
}

class Body extends Module {
  readonly embedder: Stem;
  readonly encoder: Encoder;
  readonly #activation: Activation;

  constructor(sizes: Sizes) {
    super();
    this.#activation = activationNamed(sizes.activation);
    this.embedder = this.child("embedder", new Stem(sizes));
    this.encoder = this.child("encoder", new Encoder(sizes));
  }

  /** (B, C, H, W) → (B, D, h, w) */
  forward(context: Context, pixels: Value, statistics: Statistics): Value {
    const stem = this.#activation(this.embedder.embedder.forward(context, pixels, statistics));
    const x = maxPool(stem, { kernel: [3, 3], stride: [2, 2], padding: [1, 1] });
    return this.encoder.stages.items
      .flatMap(({ layers }) => layers.items)
      .reduce((y, block) => block.forward(context, y, statistics), x);
  }
}

/** The head's linear layer stands second, behind a flattening without parameters. */
class Classifier extends Module {
  readonly linear: Linear;

  constructor(from: number, classes: number) {
    super();
    this.linear = this.child("1", new Linear(from, classes, { init: kaimingUniformOrBias(from) }));
  }
}

/** PyTorch's start of a linear layer: weights and biases up to 1 / √inputs. */
function kaimingUniformOrBias(from: number): Initializer {
  return (rng, shape) =>
    shape.length > 1
      ? kaimingUniform(rng, shape)
      : rng.uniforms(shape[0]!).map((u) => (2 * u - 1) / Math.sqrt(from));
}

export class ResNet extends Network<Value, VisionOptions, VisionResult> implements VisionModel {
  readonly kind = "vision";
  readonly family = "resnet";
  readonly classifier = "ResNetForImageClassification";
  readonly sizes: VisionSizes;
  readonly config: Json;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = {};
  /** Adapters sit on linear layers, and the only one is the head: train all parameters, or the head. */
  readonly defaultTargets: readonly string[] = [];
  readonly head: PictureHead | undefined;
  readonly #body: Body;
  readonly #output: Linear | undefined;

  constructor(config: ResNetConfig) {
    super();
    const { head } = config;
    const sizes: Sizes = {
      ...config,
      layerType: config.layerType ?? "bottleneck",
      activation: config.activation ?? "relu",
      channels: config.channels ?? 3,
      downsampleInFirstStage: config.downsampleInFirstStage ?? false,
      downsampleInBottleneck: config.downsampleInBottleneck ?? false,
    };
    if (sizes.widths.length !== sizes.depths.length || sizes.widths.length === 0) {
      throw new OptionError(
        `resnet: hidden_sizes has ${sizes.widths.length} stages and depths ${sizes.depths.length} — give one number of each for every stage.`,
      );
    }
    this.#body = new Body(sizes);
    if (head) this.child("resnet", this.#body);
    else for (const [name, child] of childrenOf(this.#body)) this.child(name, child);
    const dModel = sizes.widths.at(-1)!;
    this.#output =
      head && this.child("classifier", new Classifier(dModel, head.labels.length)).linear;
    this.head = head && { ...head, modules: ["classifier"] };
    this.sizes = { dModel, dPooled: dModel, imageSize: [224, 224], channels: sizes.channels };
    this.targets = linearLayers(
      this,
      this.head && { ...this.head, task: "sequence-classification" },
    );
    this.config = toJson(config, sizes);
  }

  protected override pass(context: Context, pixels: Value, options: VisionOptions): VisionResult {
    const statistics = options.statistics ?? (context.training ? "batch" : "running");
    const x = this.#body.forward(context, pixels, statistics);
    const [batch, width, height, columns] = x.shape as [number, number, number, number];
    const places = transpose(reshape(x, [batch, width, height * columns]), [0, 2, 1]);
    const pooled = globalAvgPool(x);
    return {
      hidden: reshape(places, [-1, width]),
      pooled,
      ...(this.#output && { logits: this.#output.forward(context, pooled) }),
    };
  }
}

function toJson(config: ResNetConfig, sizes: Sizes): Json {
  return {
    architectures: [config.head ? "ResNetForImageClassification" : "ResNetModel"],
    model_type: "resnet",
    num_channels: sizes.channels,
    embedding_size: sizes.dEmbedding,
    hidden_sizes: sizes.widths,
    depths: sizes.depths,
    layer_type: sizes.layerType,
    hidden_act: sizes.activation,
    downsample_in_first_stage: sizes.downsampleInFirstStage,
    downsample_in_bottleneck: sizes.downsampleInBottleneck,
    ...headJson(config.head),
  };
}

/** Numbers of the stages; the released models have four. */
function readList(json: Json, key: string, missing: readonly number[], cap: number): number[] {
  const value = json[key] ?? missing;
  const isFine =
    Array.isArray(value) &&
    value.length >= 1 &&
    value.length <= 16 &&
    value.every((n) => Number.isInteger(n) && n >= 1 && n <= cap);
  if (isFine) return [...(value as number[])];
  throw new FormatError(
    `resnet: "${key}" must list 1 to 16 whole numbers from 1 to ${cap}, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

/** A ResNet from the contents of its config.json; `architectures` says whether it classifies. */
export function resnetFromConfig(json: Json): ResNet {
  const read = readConfig("resnet", json);
  refuseQuantized("resnet", json);
  const head = readHead("resnet", json, architectures);
  return new ResNet({
    dEmbedding: read("embedding_size", positive, 64),
    widths: readList(json, "hidden_sizes", [256, 512, 1024, 2048], 2 ** 16),
    depths: readList(json, "depths", [3, 4, 6, 3], 512),
    layerType: oneOf("resnet", json, "layer_type", layerTypes, "bottleneck"),
    activation: String(json["hidden_act"] ?? "relu"),
    channels: read("num_channels", positive, 3),
    downsampleInFirstStage: json["downsample_in_first_stage"] === true,
    downsampleInBottleneck: json["downsample_in_bottleneck"] === true,
    ...(head && { head }),
  });
}
