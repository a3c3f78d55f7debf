/** Vectors of pictures, and pictures told apart by texts alone. */
import type { Backend, Executable } from "../backend/backend.ts";
import { trace } from "../backend/compile.ts";
import { type Preprocessing, pixelsOf } from "../data/images.ts";
import type { Picture } from "../data/resample.ts";
import { frameText, textFrame } from "../data/text-frame.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError, StateError } from "../errors.ts";
import { cast } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import type { PretrainedModel, VisionModel, VisionTextModel } from "../models/model.ts";
import { normalized } from "../models/pooling.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";

export interface ImageEmbedOptions {
  /** Vectors of length 1, so that products are cosines; default true. */
  readonly normalize?: boolean;
  /** Pictures together; default 8. */
  readonly batchSize?: number;
}

/** Whether a model sees pictures. */
export function seesPictures(model: PretrainedModel): model is VisionModel | VisionTextModel {
  return model.kind === "vision" || model.kind === "vision-text";
}

/** @throws OptionError for a batch size that is none. */
function checkBatch(batchSize: number): void {
  if (Number.isInteger(batchSize) && batchSize >= 1 && batchSize <= 4096) return;
  throw new OptionError(`batchSize must be a whole number from 1 to 4096, got ${batchSize}.`);
}

/** Vectors of pictures by a ViT, a ResNet or CLIP's tower. */
export class ImageEmbedder {
  /** Numbers of a vector. */
  readonly dims: number;
  readonly preprocessing: Preprocessing;
  readonly #model: VisionModel | VisionTextModel;
  readonly #params: TensorRecord;
  readonly #backend: Backend;
  readonly #normalize: boolean;
  readonly #rows: number;
  #loaded: { readonly key: string; readonly executable: Executable } | undefined;
  #released = false;

  constructor(
    model: VisionModel | VisionTextModel,
    params: TensorRecord,
    preprocessing: Preprocessing,
    backend: Backend,
    options: ImageEmbedOptions = {},
  ) {
    const { batchSize = 8, normalize = true } = options;
    checkBatch(batchSize);
    this.#model = model;
    this.#params = params;
    this.#backend = backend;
    this.#normalize = normalize;
    // A product with a single row may differ in the last bits from the same row among others.
    this.#rows = Math.max(2, batchSize);
    this.preprocessing = preprocessing;
    this.dims = model.kind === "vision" ? model.sizes.dPooled : model.dShared;
  }

  /** Pictures that `embed` takes at once without padding. */
  get batchSize(): number {
    return this.#rows;
  }

  /**
   * Vectors of pictures that are in the model's size already (`fitted`), (N, dims).
   * @throws ShapeError for pictures of another size than the model's.
   * @throws StateError after `release`.
   */
  async embed(pictures: readonly Picture[]): Promise<Tensor<"float32">> {
    const data = new Float32Array(pictures.length * this.dims);
    for (let start = 0; start < pictures.length; start += this.#rows) {
      const chosen = pictures.slice(start, start + this.#rows);
      const filled = Array.from({ length: this.#rows }, (_, i) => chosen[i % chosen.length]!);
      const pixels = pixelsOf(filled, this.preprocessing);
      const executable = await this.#executableFor(pixels);
      const [vectors] = await executable.run([...Object.values(this.#params), pixels]);
      const rows = vectors!.data as Float32Array;
      data.set(rows.subarray(0, chosen.length * this.dims), start * this.dims);
    }
    return new Tensor("float32", [pictures.length, this.dims], data);
  }

  async #executableFor(pixels: Tensor): Promise<Executable> {
    if (this.#released) throw new StateError("embed: the embedder was released.");
    const key = String(pixels.shape);
    if (this.#loaded?.key === key) return this.#loaded.executable;
    await this.#loaded?.executable.release();
    this.#loaded = undefined;
    const model = this.#model;
    const traced = trace(
      ((values: ValueRecord, seen: Value) => {
        const context = model.context(values);
        const pooled =
          model.kind === "vision"
            ? model.forward(context, seen).pooled
            : model.embedImages(context, seen);
        return this.#normalize ? normalized(pooled) : pooled;
      }) as never,
      [this.#params, pixels],
    );
    const executable = await this.#backend.load(traced.program);
    this.#loaded = { key, executable };
    return executable;
  }

  async release(): Promise<void> {
    this.#released = true;
    await this.#loaded?.executable.release();
    this.#loaded = undefined;
  }
}

/**
 * Vectors of texts in the space of CLIP's pictures, (N, dShared), of length 1 unless `normalize` is false.
 * Longer texts are cut, as CLIP's own tokenizer does.
 * @throws OptionError for no texts at all.
 */
export async function embedClipTexts(
  model: VisionTextModel,
  params: TensorRecord,
  tokenizer: Tokenizer,
  texts: readonly string[],
  backend: Backend,
  options: { readonly normalize?: boolean } = {},
): Promise<Tensor<"float32">> {
  if (texts.length === 0) throw new OptionError("embed: there are no texts.");
  const frame = textFrame(tokenizer);
  const { maxPositions } = model.text;
  const ids = texts.map(
    (text) => frameText(frame, tokenizer.encode(text), undefined, maxPositions).ids,
  );
  const rows = Math.max(2, texts.length);
  const longest = Math.max(...ids.map(({ length }) => length));
  const length = Math.min(maxPositions, Math.ceil(longest / 8) * 8);
  const data = new Int32Array(rows * length);
  const mask = new Int32Array(rows * length);
  for (let row = 0; row < rows; row++) {
    const own = ids[row % ids.length]!;
    data.set(own, row * length);
    mask.fill(1, row * length, row * length + own.length);
  }
  const inputs = [data, mask].map((x) => new Tensor("int32", [rows, length], x));
  const traced = trace(
    ((values: ValueRecord, tokens: Value, there: Value) => {
      const pooled = model.embedTexts(model.context(values), tokens, { mask: cast(there, "bool") });
      return options.normalize === false ? pooled : normalized(pooled);
    }) as never,
    [params, ...inputs],
  );
  const executable = await backend.load(traced.program);
  try {
    const [vectors] = await executable.run([...Object.values(params), ...inputs]);
    const kept = (vectors!.data as Float32Array).slice(0, texts.length * model.dShared);
    return new Tensor("float32", [texts.length, model.dShared], kept as Float32Array<ArrayBuffer>);
  } finally {
    await executable.release();
  }
}

/** What a label becomes before CLIP reads it; the label stands for `{}`. */
export const defaultTemplate = "This is a photo of {}.";

/** The texts of labels. @throws OptionError for a template without `{}`. */
export function labelTexts(
  labels: readonly string[],
  template: string = defaultTemplate,
): string[] {
  if (!template.includes("{}")) {
    throw new OptionError(`zero-shot: the template must hold {} for the label, got "${template}".`);
  }
  return labels.map((label) => template.replaceAll("{}", () => label));
}

/**
 * Probabilities of labels for each picture, (N, labels): softmax of cosines times CLIP's factor.
 * @param images (N, D), of length 1
 * @param texts (labels, D), of length 1
 * @param logitScale the model's, log of the factor
 */
export function zeroShot(images: Tensor, texts: Tensor, logitScale: number): Tensor<"float32"> {
  const [count, dims] = images.shape as [number, number];
  const [labels, other] = texts.shape as [number, number];
  if (dims !== other) {
    throw new OptionError(`zero-shot: pictures have ${dims} numbers and texts ${other}.`);
  }
  const [a, b] = [images.numbers(), texts.numbers()];
  const scale = Math.exp(logitScale);
  const out = new Float32Array(count * labels);
  for (let i = 0; i < count; i++) {
    const logits = Array.from({ length: labels }, (_, j) => {
      let product = 0;
      for (let k = 0; k < dims; k++) product += a[i * dims + k]! * b[j * dims + k]!;
      return scale * product;
    });
    const top = Math.max(...logits);
    const total = logits.reduce((z, x) => z + Math.exp(x - top), 0);
    logits.forEach((x, j) => {
      out[i * labels + j] = Math.exp(x - top) / total;
    });
  }
  return new Tensor("float32", [count, labels], out);
}
