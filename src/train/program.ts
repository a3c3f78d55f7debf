/** The training step of a language model as programs: loss and gradients, one per batch shape. */
import { gradientOf } from "../autodiff/grad.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { trace } from "../backend/compile.ts";
import { StateError } from "../errors.ts";
import { cast, div, equal, mul } from "../ir/elementwise.ts";
import { Graph, type Value } from "../ir/graph.ts";
import { argMax, sum } from "../ir/reduce.ts";
import type { LanguageModel } from "../models/model.ts";
import { crossEntropy } from "../nn/losses.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { type StaticShape, sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Tokens and where they carry loss. */
export interface Batch {
  /** (B, T) int32 */
  readonly ids: Tensor<"int32">;
  /** Rows of (B·T) that carry loss, (R,) int32; without it R = B·T. */
  readonly rows?: Tensor<"int32">;
  /** The next token at each of these rows, (R,) int32. */
  readonly targets: Tensor<"int32">;
  /** Weight of each row, (R,): 0 where there is no loss. */
  readonly weights: Tensor<"float32">;
}

/** A model, what of it is trained, and how trained numbers enter its forward pass. */
export interface Trainee {
  readonly model: LanguageModel;
  readonly frozen: TensorRecord;
  readonly trained: TensorRecord;
  /** Adapters: what the forward pass does with trained values that are not the model's own. */
  readonly adapt?: (values: ValueRecord) => ContextOptions;
}

export interface ProgramOptions {
  /** Recompute blocks in the backward pass. */
  readonly checkpoint?: boolean;
  /** Shapes kept loaded; the least recently used is released. */
  readonly cacheSize?: number;
}

export interface EvalResult {
  /** Σ weight · -log p */
  readonly loss: number;
  /** Σ weight */
  readonly weight: number;
  /** Σ weight where the likeliest token is the target */
  readonly correct: number;
}

interface Loaded {
  readonly executable: Executable;
  readonly noise: readonly { readonly name: string; readonly shape: StaticShape }[];
}

const noisePrefix = "noise:";

export class TrainProgram {
  readonly #trainee: Trainee;
  readonly #backend: Backend;
  readonly #options: ProgramOptions;
  readonly #loaded: Map<string, Promise<Loaded>> = new Map();
  #released = false;

  constructor(trainee: Trainee, backend: Backend, options: ProgramOptions = {}) {
    this.#trainee = trainee;
    this.#backend = backend;
    this.#options = options;
  }

  /**
   * Loss Σ w · nll / total; gradients are written into the given tensors.
   * @param trained current parameters, by path
   * @param total the sum of weights over all parts of the batch
   * @param rng the source of this part's noise
   */
  async lossAndGradients(
    batch: Batch,
    trained: TensorRecord,
    gradients: TensorRecord,
    total: number,
    rng: Rng,
  ): Promise<number> {
    const { executable, noise } = await this.#get("train", batch);
    const paths = Object.keys(this.#trainee.trained);
    const inputs = [
      ...paths.map((path) => trained[path]!),
      ...Object.values(this.#trainee.frozen),
      ...batchTensors(batch),
      Tensor.scalar(total),
      ...noise.map(
        ({ name, shape }) => new Tensor("float32", shape, rng.fold(name).uniforms(sizeOf(shape))),
      ),
    ];
    const outputs = await executable.run(inputs, [
      undefined,
      ...paths.map((path) => gradients[path]),
    ]);
    return outputs[0]!.item();
  }

  /** The loss of a batch without training: dropout off. */
  async evaluate(batch: Batch, trained: TensorRecord): Promise<EvalResult> {
    const { executable } = await this.#get("eval", batch);
    const [loss, correct] = await executable.run([
      ...Object.keys(this.#trainee.trained).map((path) => trained[path]!),
      ...Object.values(this.#trainee.frozen),
      ...batchTensors(batch),
    ]);
    const weight = batch.weights.data.reduce((a, b) => a + b, 0);
    return { loss: loss!.item(), correct: correct!.item(), weight };
  }

  async #get(mode: "train" | "eval", batch: Batch): Promise<Loaded> {
    if (this.#released) throw new StateError("train: the program was released.");
    const key = `${mode}|${batch.ids.shape}|${batch.rows?.shape}|${batch.targets.shape}`;
    let loaded = this.#loaded.get(key);
    if (loaded) this.#loaded.delete(key);
    else {
      await this.#makeRoom();
      loaded = this.#load(mode, batch);
    }
    this.#loaded.set(key, loaded);
    return loaded;
  }

  async #makeRoom(): Promise<void> {
    const limit = this.#options.cacheSize ?? 8;
    while (this.#loaded.size >= limit) {
      const [key, oldest] = this.#loaded.entries().next().value!;
      this.#loaded.delete(key);
      await (await oldest).executable.release();
    }
  }

  async #load(mode: "train" | "eval", batch: Batch): Promise<Loaded> {
    const { model, frozen, trained } = this.#trainee;
    const noise: { name: string; shape: StaticShape }[] = [];
    const forward = (
      own: ValueRecord,
      fixed: ValueRecord,
      parts: { ids: Value; rows?: Value; targets: Value; weights: Value },
    ): { logits: Value; sumOfLoss: Value } => {
      const options: ContextOptions = {
        ...this.#trainee.adapt?.(own),
        training: mode === "train",
        checkpoint: mode === "train" && (this.#options.checkpoint ?? false),
        noise: (site, shape) => noiseInput(parts.ids, noise, site, shape),
      };
      const context = model.context({ ...fixed, ...own }, {}, options);
      const { logits } = model.forward(context, parts.ids, parts.rows && { rows: parts.rows });
      const rows = crossEntropy(logits, parts.targets, { reduction: "none" });
      return { logits, sumOfLoss: sum(mul(rows, parts.weights)) };
    };
    const parts = {
      ids: batch.ids,
      ...(batch.rows && { rows: batch.rows }),
      targets: batch.targets,
      weights: batch.weights,
    };
    type Parts = Parameters<typeof forward>[2];
    const traced =
      mode === "train"
        ? trace(
            ((own: ValueRecord, fixed: ValueRecord, p: Parts, total: Value) => {
              const loss = div(forward(own, fixed, p).sumOfLoss, total);
              return [loss, gradientOf(loss, own)];
            }) as never,
            [trained, frozen, parts, Tensor.scalar(0)],
          )
        : trace(
            ((own: ValueRecord, fixed: ValueRecord, p: Parts) => {
              const { logits, sumOfLoss } = forward(own, fixed, p);
              const hits = cast(equal(argMax(logits, 1), p.targets), "float32");
              return [sumOfLoss, sum(mul(hits, p.weights))];
            }) as never,
            [trained, frozen, parts],
          );
    return { executable: await this.#backend.load(traced.program), noise };
  }

  async release(): Promise<void> {
    this.#released = true;
    for (const loaded of this.#loaded.values()) await (await loaded).executable.release();
    this.#loaded.clear();
  }
}

/** The batch's tensors in the order that their names are traced. */
function batchTensors({ ids, rows, targets, weights }: Batch): Tensor[] {
  return rows ? [ids, rows, targets, weights] : [ids, targets, weights];
}

/** An input of the outermost graph, whatever block asks for it. */
function noiseInput(
  ids: Value,
  known: { name: string; shape: StaticShape }[],
  site: string,
  shape: StaticShape,
): Value {
  const again = ids.graph.inputs.find(
    (input) => (input.node.attrs as { name: string }).name === noisePrefix + site,
  );
  if (again) return Graph.current!.lift(again);
  known.push({ name: site, shape });
  return Graph.current!.lift(ids.graph.input(noisePrefix + site, { shape, dtype: "float32" }));
}
