/**
 * A causal language model as one that gives a vector for each token: for embeddings, and with the head
 * `score`, which classifies a text by its last token, as `transformers` stores it.
 */
import type { Value } from "../ir/graph.ts";
import { reshape } from "../ir/layout.ts";
import { normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import type { Context, Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import type { BlockSites } from "./blocks.ts";
import { childrenOf, type HeadConfig, headJson, readLabels, readProblem } from "./heads.ts";
import type {
  EncoderHead,
  EncoderModel,
  EncoderOptions,
  EncoderResult,
  EncoderSizes,
  LanguageModel,
  PretrainedModel,
} from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

export class CausalEncoder
  extends Network<Value, EncoderOptions, EncoderResult>
  implements EncoderModel
{
  readonly kind = "encoder";
  readonly family: string;
  readonly sizes: EncoderSizes;
  readonly config: Json;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[];
  readonly ignored: RegExp;
  readonly head: EncoderHead | undefined;
  readonly embedding: Slot;
  readonly blocks: readonly BlockSites[];
  readonly #inner: LanguageModel;

  /**
   * @param inner with a head it must have no output layer of its own
   * @param architecture the class of `transformers`, with a head
   */
  constructor(inner: LanguageModel, head?: HeadConfig, architecture?: string) {
    super();
    this.#inner = inner;
    this.family = inner.family;
    this.sizes = inner.sizes;
    this.embedding = inner.embedding;
    this.targets = inner.targets;
    this.defaultTargets = inner.defaultTargets;
    this.ignored = inner.ignored ?? /(?!)/;
    for (const [name, child] of childrenOf(inner)) this.child(name, child);
    this.blocks = inner.blocks ?? [];
    this.tied = head ? {} : inner.tied;
    if (!head) {
      this.head = undefined;
      this.config = inner.config;
      return;
    }
    const { task, labels, problem } = head;
    const score = this.child(
      "score",
      new Linear(inner.sizes.dModel, labels.length, { bias: false, init: normal(0.02) }),
    );
    this.head = {
      ...{ task, labels, problem, reads: "last", modules: ["score"] },
      forward: (context, hidden) => score.forward(context, hidden),
    };
    this.config = {
      ...inner.config,
      ...(architecture !== undefined && { architectures: [architecture] }),
      ...headJson(head),
    };
  }

  protected override pass(context: Context, ids: Value, options: EncoderOptions): EncoderResult {
    const [batch, length] = ids.shape as [number | string, number];
    const { mask, positions, rows } = options;
    const { hidden } = this.#inner.forward(context, ids, {
      ...(mask && { mask: reshape(mask, [batch, 1, 1, length]) }),
      ...(positions && { positions }),
      ...(rows && { rows }),
    });
    return { hidden };
  }
}

const classifier = /ForSequenceClassification$/;

/**
 * Makes models as `make` does, and of a causal language model whose `architectures` names a classifier
 * one with the head `score`.
 */
export function classifying(
  make: (config: Json) => PretrainedModel,
): (config: Json) => PretrainedModel {
  return (config) => {
    const model = make(config);
    const list = config["architectures"];
    const name: unknown = Array.isArray(list) ? list[0] : undefined;
    if (model.kind !== "causal-lm" || typeof name !== "string" || !classifier.test(name)) {
      return model;
    }
    const labels = readLabels(model.family, config);
    const task = "sequence-classification";
    const problem = readProblem(model.family, config, task, labels);
    // Tied, so that it has no output layer for words, which such a checkpoint lacks.
    const inner = make({ ...config, tie_word_embeddings: true }) as LanguageModel;
    return new CausalEncoder(inner, { task, labels, problem }, name);
  };
}
