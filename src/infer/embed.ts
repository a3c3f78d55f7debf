/** Vectors of texts: pooled, cut to fewer numbers, normalised. */
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { Backend } from "../backend/backend.ts";
import { frameText, type TextFrame, textFrame } from "../data/text-frame.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError } from "../errors.ts";
import { slice } from "../ir/layout.ts";
import { CausalEncoder } from "../models/causal-encoder.ts";
import type { EncoderModel, LanguageModel, PretrainedModel } from "../models/model.ts";
import { normalized, type Pooling, poolTokens } from "../models/pooling.ts";
import type { SentenceConfig } from "../models/sentence-folder.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type EncoderInput, EncoderRunner, type EncoderRunOptions } from "./encoder-run.ts";

export interface EmbedOptions {
  /** Default: what the folder says, else "mean" of an encoder and "last" of a causal model. */
  readonly pooling?: Pooling;
  /** Vectors of length 1; default: what the folder says, else false. */
  readonly normalize?: boolean;
  /**
   * Only the first numbers of each vector (Kusupati et al., "Matryoshka Representation Learning", 2022),
   * cut before they are normalised. Default all.
   */
  readonly dims?: number;
  /** Tokens of a text at most; default: what the folder says, else the model's positions. */
  readonly maxLength?: number;
  /** Stands before every text; default nothing. */
  readonly prompt?: string;
  /** What the folder says, by `readSentenceConfig`. */
  readonly sentence?: SentenceConfig;
  readonly adapter?: LoadedAdapter;
}

/**
 * A model that gives a vector for each token: an encoder itself, a causal language model by its hidden
 * states.
 * @throws OptionError for models of other kinds.
 */
export function asEncoder(model: PretrainedModel): EncoderModel {
  if (model.kind === "encoder") return model as EncoderModel;
  if (model.kind === "causal-lm") return new CausalEncoder(model as LanguageModel);
  throw new OptionError(`embed: a ${model.family} gives no vectors of texts.`);
}

export class TextEmbedder {
  readonly pooling: Pooling;
  readonly normalize: boolean;
  /** Numbers of a vector. */
  readonly dims: number;
  readonly maxLength: number;
  readonly #tokenizer: Tokenizer;
  readonly #frame: TextFrame;
  readonly #prompt: string;
  readonly #runner: EncoderRunner;

  /** @throws OptionError for settings outside their range. */
  constructor(
    model: PretrainedModel,
    params: TensorRecord,
    tokenizer: Tokenizer,
    backend: Backend,
    options: EmbedOptions = {},
  ) {
    const encoder = asEncoder(model);
    const { dModel, maxPositions } = encoder.sizes;
    const { sentence, dims = dModel } = options;
    this.pooling =
      options.pooling ?? sentence?.pooling ?? (model.kind === "causal-lm" ? "last" : "mean");
    this.normalize = options.normalize ?? sentence?.normalize ?? false;
    const wanted = options.maxLength ?? sentence?.maxLength ?? maxPositions;
    if (!(Number.isInteger(wanted) && wanted >= 1)) {
      throw new OptionError(`embed: maxLength must be a whole number from 1, got ${wanted}.`);
    }
    this.maxLength = Math.min(wanted, maxPositions);
    if (!(Number.isInteger(dims) && dims >= 1 && dims <= dModel)) {
      throw new OptionError(
        `embed: dims must be a whole number from 1 to the model's ${dModel}, got ${dims}.`,
      );
    }
    this.dims = dims;
    this.#tokenizer = tokenizer;
    this.#frame = textFrame(tokenizer);
    this.#prompt = options.prompt ?? "";
    this.#runner = new EncoderRunner(
      encoder,
      params,
      backend,
      ({ hidden, mask }) => {
        const pooled = poolTokens(hidden, mask, this.pooling);
        const cut = dims < dModel ? slice(pooled, 1, 0, dims) : pooled;
        return this.normalize ? normalized(cut) : cut;
      },
      options.adapter,
    );
  }

  /** A text as the model reads it. */
  encode(text: string): EncoderInput & { readonly isCut: boolean } {
    const ids = this.#tokenizer.encode(this.#prompt + text);
    return frameText(this.#frame, ids, undefined, this.maxLength);
  }

  /**
   * Vectors of texts, (N, dims).
   * @throws OptionError for a text without a token.
   */
  async embed(
    texts: readonly string[],
    options: EncoderRunOptions = {},
  ): Promise<Tensor<"float32">> {
    const rows = await this.#runner.run(
      texts.map((text) => this.encode(text)),
      options,
    );
    const data = new Float32Array(texts.length * this.dims);
    rows.forEach((row, i) => {
      data.set(row, i * this.dims);
    });
    return new Tensor("float32", [texts.length, this.dims], data);
  }

  release(): Promise<void> {
    return this.#runner.release();
  }
}
