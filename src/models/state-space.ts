/** What Mamba and Mamba-2 share: pre-norm blocks of one mixer each, and a state instead of keys and values. */
import { UnsupportedError } from "../errors.ts";
import { add, equal } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { asRows, dot } from "../ir/linear.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import type { MixerOptions, MixerState } from "../nn/mamba.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { RmsNorm } from "../nn/norm.ts";
import type { StaticShape } from "../tensor/shape.ts";
import { linearsOf } from "./causal.ts";
import { type Check, oneOf, refuseQuantized } from "./config.ts";
import type { ForwardOptions, ForwardResult, LanguageModel, LanguageModelSizes } from "./model.ts";

/** A layer that mixes over time: (B, T, dModel) → the same, and its state after the last step. */
export interface Mixer extends Module {
  forward(context: Context, x: Value, options: MixerOptions): { y: Value; state: MixerState };
}

/** These models have no table of positions; a bound on texts all the same. */
export const mostTokens: number = 2 ** 20;

export interface StateSpaceOptions {
  readonly family: string;
  /** The contents of config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly sizes: LanguageModelSizes;
  /** Under the root of the norms. */
  readonly epsilon: number;
  readonly initializerRange: number;
  /** The output layer is the embedding. */
  readonly tieEmbeddings: boolean;
  readonly mixer: () => Mixer;
  /** Of one row of one layer: (channels, kernel - 1), and the recurrence's. */
  readonly state: { readonly conv: StaticShape; readonly ssm: StaticShape };
  readonly defaultTargets: readonly string[];
}

class Block extends Module {
  readonly norm: RmsNorm;
  readonly mixer: Mixer;

  constructor({ sizes, epsilon, mixer }: StateSpaceOptions) {
    super();
    this.norm = this.child("norm", new RmsNorm(sizes.dModel, { epsilon }));
    this.mixer = this.child("mixer", mixer());
  }

  forward(context: Context, x: Value, options: MixerOptions): [Value, MixerState] {
    const { y, state } = this.mixer.forward(context, this.norm.forward(context, x), options);
    return [add(x, y), state];
  }
}

class Backbone extends Module {
  readonly embeddings: Embedding;
  readonly layers: ModuleList<Block>;
  readonly norm_f: RmsNorm;

  constructor(options: StateSpaceOptions) {
    super();
    const { vocabSize, dModel, nLayers } = options.sizes;
    const init = normal(options.initializerRange);
    this.embeddings = this.child("embeddings", new Embedding(vocabSize, dModel, { init }));
    const blocks = Array.from({ length: nLayers }, () => new Block(options));
    this.layers = this.child("layers", new ModuleList(blocks));
    this.norm_f = this.child("norm_f", new RmsNorm(dModel, { epsilon: options.epsilon }));
  }
}

/** A causal language model whose layers carry a state. */
export class StateSpaceModel
  extends Network<Value, ForwardOptions, ForwardResult>
  implements LanguageModel
{
  readonly kind = "causal-lm";
  readonly family: string;
  readonly backbone: Backbone;
  readonly lm_head: Linear | undefined;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly untargeted: RegExp = /\.(dt|out)_proj$|\.conv1d$/;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[];
  readonly stateShapes: Readonly<Record<string, StaticShape>>;

  constructor(options: StateSpaceOptions) {
    super();
    const { sizes, tieEmbeddings, state } = options;
    this.family = options.family;
    this.sizes = sizes;
    this.config = options.config;
    this.defaultTargets = options.defaultTargets;
    this.backbone = this.child("backbone", new Backbone(options));
    // transformers reads the weight of dt_proj past its layer, so that an adapter would do nothing there;
    // and PEFT refuses LoRA on out_proj, since Mamba's kernels read its weight themselves.
    this.targets = new Map([...linearsOf(this)].filter(([path]) => !this.untargeted.test(path)));
    this.lm_head = tieEmbeddings
      ? undefined
      : this.child("lm_head", new Linear(sizes.dModel, sizes.vocabSize, { bias: false }));
    this.tied = tieEmbeddings ? { "lm_head.weight": "backbone.embeddings.weight" } : {};
    this.stateShapes = Object.fromEntries(
      Array.from({ length: sizes.nLayers }, (_, i) => [
        [`${i}.conv`, state.conv],
        [`${i}.ssm`, state.ssm],
      ]).flat() as [string, StaticShape][],
    );
  }

  get embedding(): Slot {
    return this.backbone.embeddings.weight;
  }

  /**
   * Of `mask` only what `positions` says too can be followed, which is where texts of a packed row begin.
   * @throws UnsupportedError for keys and values of earlier tokens, and for a mask alone.
   */
  protected override pass(context: Context, ids: Value, options: ForwardOptions): ForwardResult {
    const { positions, state, lengths } = options;
    if (options.past) {
      throw new UnsupportedError(
        `${this.family}: carries a state from token to token and has no keys and values — a program that takes them in, as ONNX export writes one, cannot be made of it.`,
      );
    }
    if (options.mask && !positions) {
      throw new UnsupportedError(
        `${this.family}: a recurrent model reads every token before it, a mask of pairs cannot be followed — give positions that begin each text at 0.`,
      );
    }
    const { embeddings, layers, norm_f } = this.backbone;
    const resets = !state && positions && equal(positions, 0);
    const after: Record<string, Value> = {};
    let x = embeddings.forward(context, ids);
    for (const [i, block] of layers.items.entries()) {
      const own = state && { conv: state[`${i}.conv`]!, ssm: state[`${i}.ssm`]! };
      const mixing: MixerOptions = {
        ...(own && { state: own }),
        ...(resets && { resets }),
        ...(lengths && { lengths }),
      };
      const [y, next] = checkpointed(context, x, (input) => block.forward(context, input, mixing));
      x = y;
      after[`${i}.conv`] = next.conv;
      after[`${i}.ssm`] = next.ssm;
    }
    const rows = asRows(x);
    const hidden = norm_f.forward(context, options.rows ? gather(rows, options.rows) : rows);
    const logits = this.lm_head
      ? this.lm_head.forward(context, hidden)
      : dot(hidden, context.get(this.embedding), { transB: true });
    return { logits, hidden, present: [], state: after };
  }
}

/** Of a convolution over time: a width of 1 would carry nothing, and 4 is what all published models have. */
export const kernelWidth: Check = (value) =>
  Number.isInteger(value) && (value as number) >= 2 && (value as number) <= 64
    ? undefined
    : "must be a whole number from 2 to 64";

/** What neither of the two computes. @throws OptionError */
export function checkStateSpace(family: string, json: Readonly<Record<string, unknown>>): void {
  refuseQuantized(family, json);
  oneOf(family, json, "hidden_act", ["silu", "swish"], "silu");
}
