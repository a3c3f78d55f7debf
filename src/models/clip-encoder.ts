/** The blocks that both towers of CLIP are made of: normalisation before attention and feed-forward. */
import { OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { type Activation, activationNamed } from "../nn/activation.ts";
import { attention, attentionProbabilities } from "../nn/attention.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { normal, zeros } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, type Initializer, Module, ModuleList } from "../nn/module.ts";
import { LayerNorm } from "../nn/norm.ts";
import { splitHeads } from "./bert-layers.ts";
import { type BlockSites, blockSites } from "./blocks.ts";

export interface TowerSizes {
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly dFeedForward: number;
  /** By the names of `activationNamed`; "quick_gelu" in openai's models. */
  readonly activation: string;
  /** Under the root of LayerNorm; 1e-5. */
  readonly epsilon: number;
}

/** Weights normal, biases zero. */
const scaled =
  (deviation: number): Initializer =>
  (rng, shape) =>
    (shape.length === 1 ? zeros : normal(deviation))(rng, shape);

class SelfAttention extends Module {
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly q_proj: Linear;
  readonly out_proj: Linear;

  constructor({ dModel, nLayers }: TowerSizes) {
    super();
    const out = dModel ** -0.5;
    const into = { init: scaled(out * (2 * nLayers) ** -0.5) };
    this.k_proj = this.child("k_proj", new Linear(dModel, dModel, into));
    this.v_proj = this.child("v_proj", new Linear(dModel, dModel, into));
    this.q_proj = this.child("q_proj", new Linear(dModel, dModel, into));
    this.out_proj = this.child("out_proj", new Linear(dModel, dModel, { init: scaled(out) }));
  }
}

class FeedForward extends Module {
  readonly fc1: Linear;
  readonly fc2: Linear;
  readonly #activation: Activation;

  constructor({ dModel, dFeedForward, nLayers, activation }: TowerSizes) {
    super();
    this.#activation = activationNamed(activation);
    const [wide, narrow] = [(2 * dModel) ** -0.5, dModel ** -0.5 * (2 * nLayers) ** -0.5];
    this.fc1 = this.child("fc1", new Linear(dModel, dFeedForward, { init: scaled(wide) }));
    this.fc2 = this.child("fc2", new Linear(dFeedForward, dModel, { init: scaled(narrow) }));
  }

  forward(context: Context, x: Value): Value {
    return this.fc2.forward(context, this.#activation(this.fc1.forward(context, x)));
  }
}

interface Rows {
  readonly batch: number | string;
  readonly length: number;
  readonly causal?: boolean;
  /** (B, 1, 1, T) bool */
  readonly mask?: Value;
}

class Layer extends Module {
  readonly self_attn: SelfAttention;
  readonly layer_norm1: LayerNorm;
  readonly mlp: FeedForward;
  readonly layer_norm2: LayerNorm;
  readonly #nHeads: number;

  constructor(sizes: TowerSizes) {
    super();
    const { dModel, epsilon } = sizes;
    this.#nHeads = sizes.nHeads;
    this.self_attn = this.child("self_attn", new SelfAttention(sizes));
    this.layer_norm1 = this.child("layer_norm1", new LayerNorm(dModel, { epsilon }));
    this.mlp = this.child("mlp", new FeedForward(sizes));
    this.layer_norm2 = this.child("layer_norm2", new LayerNorm(dModel, { epsilon }));
  }

  forward(context: Context, x: Value, { batch, length, causal, mask }: Rows): Value {
    const { q_proj, k_proj, v_proj, out_proj } = this.self_attn;
    const before = this.layer_norm1.forward(context, x);
    const width = q_proj.outFeatures;
    const heads = (layer: Linear): Value =>
      splitHeads(layer.forward(context, before), batch, length, this.#nHeads, width / this.#nHeads);
    const [q, k, v] = [heads(q_proj), heads(k_proj), heads(v_proj)];
    const masks = { ...(causal && { causal }), ...(mask && { mask }) };
    const mixed = attention(q, k, v, masks);
    const merged = reshape(transpose(mixed, [0, 2, 1, 3]), [x.shape[0]!, width]);
    const size = [batch, length] as const;
    const own = context.site(this.self_attn, before, out_proj.forward(context, merged), {
      ...{ stream: x, size },
      attention: () => attentionProbabilities(q, k, masks),
    });
    const y = add(own, x);
    const after = this.layer_norm2.forward(context, y);
    const inner = this.mlp.forward(context, after);
    const z = add(context.site(this.mlp, after, inner, { stream: y, size }), y);
    return context.site(this, x, z, { size });
  }
}

export class ClipEncoder extends Module {
  readonly layers: ModuleList<Layer>;
  readonly #dModel: number;

  /** @throws OptionError when the heads do not divide the width. */
  constructor(sizes: TowerSizes) {
    super();
    if (sizes.dModel % sizes.nHeads !== 0) {
      throw new OptionError(
        `clip: dModel ${sizes.dModel} must be a multiple of nHeads ${sizes.nHeads}.`,
      );
    }
    this.#dModel = sizes.dModel;
    const layers = Array.from({ length: sizes.nLayers }, () => new Layer(sizes));
    this.layers = this.child("layers", new ModuleList(layers));
  }

  /** @param model in whose tree this tower stands */
  blockSites(model: Module): BlockSites[] {
    return blockSites(model, this.layers.items, this.#dModel, ({ self_attn, mlp }) => ({
      attention: self_attn,
      feedForward: mlp,
    }));
  }

  /** (B·T, D) → the same */
  forward(
    context: Context,
    x: Value,
    batch: number | string,
    length: number,
    options: { readonly causal?: boolean; readonly mask?: Value } = {},
  ): Value {
    return this.layers.items.reduce(
      (y, layer) =>
        checkpointed(context, y, (input) =>
          layer.forward(context, input, { batch, length, ...options }),
        ),
      x,
    );
  }
}
