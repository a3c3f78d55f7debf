/** The training step of a language model as programs: loss and gradients, one per batch shape. */
import { gradientOf } from "../autodiff/grad.ts";
import type { Backend, Executable, Program } from "../backend/backend.ts";
import { trace } from "../backend/compile.ts";
import { SessionCache } from "../backend/ort/cache.ts";
import { peakBytes } from "../backend/ort/peak.ts";
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

/** Noise that a program asks for, in the order of its inputs. */
interface NoiseSite {
  readonly name: string;
  readonly shape: StaticShape;
}

interface Plan {
  readonly program: Program;
  readonly noise: readonly NoiseSite[];
}

const noisePrefix = "noise:";

export class TrainProgram {
  readonly #trainee: Trainee;
  readonly #backend: Backend;
  readonly #options: ProgramOptions;
  readonly #cache: SessionCache;
  readonly #plans: Map<string, Plan> = new Map();
  #released = false;

  constructor(trainee: Trainee, backend: Backend, options: ProgramOptions = {}) {
    this.#trainee = trainee;
    this.#backend = backend;
    this.#options = options;
    this.#cache = new SessionCache({ maxCount: options.cacheSize ?? 8 });
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
    const paths = Object.keys(this.#trainee.trained);
    return this.#run("train", batch, async (executable, noise) => {
      const outputs = await executable.run(
        [
          ...paths.map((path) => trained[path]!),
          ...Object.values(this.#trainee.frozen),
          ...batchTensors(batch),
          Tensor.scalar(total),
          ...noise.map(
            ({ name, shape }) =>
              new Tensor("float32", shape, rng.fold(name).uniforms(sizeOf(shape))),
          ),
        ],
        [undefined, ...paths.map((path) => gradients[path])],
      );
      return outputs[0]!.item();
    });
  }

  /** The loss of a batch without training: dropout off. */
  async evaluate(batch: Batch, trained: TensorRecord): Promise<EvalResult> {
    const [loss, correct] = await this.#run("eval", batch, (executable) =>
      executable.run([
        ...Object.keys(this.#trainee.trained).map((path) => trained[path]!),
        ...Object.values(this.#trainee.frozen),
        ...batchTensors(batch),
      ]),
    );
    const weight = batch.weights.data.reduce((a, b) => a + b, 0);
    return { loss: loss!.item(), correct: correct!.item(), weight };
  }

  /** Runs with the program of a batch's shape, which is made once and kept while there is room. */
  async #run<R>(
    mode: "train" | "eval",
    batch: Batch,
    use: (executable: Executable, noise: readonly NoiseSite[]) => Promise<R>,
  ): Promise<R> {
    if (this.#released) throw new StateError("train: the program was released.");
    const key = `${mode}|${batch.ids.shape}|${batch.rows?.shape}|${batch.targets.shape}`;
    let plan = this.#plans.get(key);
    if (!plan) {
      plan = this.#trace(mode, batch);
      this.#plans.set(key, plan);
    }
    const { program, noise } = plan;
    const lease = await this.#cache.acquire(key, () => ({
      bytes: peakBytes(program),
      load: () => this.#backend.load(program),
    }));
    for (const other of this.#plans.keys()) if (!this.#cache.has(other)) this.#plans.delete(other);
    try {
      return await use(lease.executable, noise);
    } finally {
      await lease.done();
    }
  }

  #trace(mode: "train" | "eval", batch: Batch): Plan {
    const { model, frozen, trained } = this.#trainee;
    const noise: NoiseSite[] = [];
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
    return { program: traced.program, noise };
  }

  async release(): Promise<void> {
    this.#released = true;
    this.#plans.clear();
    await this.#cache.clear();
  }
}

/** The batch's tensors in the order that their names are traced. */
function batchTensors({ ids, rows, targets, weights }: Batch): Tensor[] {
  return rows ? [ids, rows, targets, weights] : [ids, targets, weights];
}

/** An input of the outermost graph, whatever block asks for it. */
function noiseInput(ids: Value, known: NoiseSite[], site: string, shape: StaticShape): Value {
  const again = ids.graph.inputs.find(
    (input) => (input.node.attrs as { name: string }).name === noisePrefix + site,
  );
  if (again) return Graph.current!.lift(again);
  known.push({ name: site, shape });
  return Graph.current!.lift(ids.graph.input(noisePrefix + site, { shape, dtype: "float32" }));
}
