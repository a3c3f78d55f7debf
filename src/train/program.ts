/** The training step of a language model as programs: loss and gradients, one per batch shape. */
import { gradientOf } from "../autodiff/grad.ts";
import {
  type AnyTensor,
  type Backend,
  type Executable,
  type Program,
  runAnywhere,
} from "../backend/backend.ts";
import { trace } from "../backend/compile.ts";
import { SessionCache } from "../backend/ort/cache.ts";
import { peakBytes } from "../backend/ort/peak.ts";
import { StateError } from "../errors.ts";
import { add, cast, div, equal, mul } from "../ir/elementwise.ts";
import { Graph, type Value } from "../ir/graph.ts";
import { reshape } from "../ir/layout.ts";
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
  /**
   * Which of several examples packed into one row a token belongs to, (B, T) int32: attention stays
   * inside an example.
   */
  readonly segments?: Tensor<"int32">;
  /** Positions inside the examples, (B, T) int32; goes with `segments`. */
  readonly positions?: Tensor<"int32">;
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
  /** What the forward pass does with values that are not the model's own: adapters, packed weights. */
  readonly adapt?: (trained: ValueRecord, frozen: ValueRecord) => ContextOptions;
  /** Of that, what frozen weights in another form need. */
  readonly form?: (frozen: ValueRecord) => ContextOptions;
}

/** Tensors by path, in host memory or on the backend's device. */
export type Weights = Readonly<Record<string, AnyTensor>>;

/** A trainee whose weights may be on the backend's device; of the trained ones only shapes are read. */
export interface PlacedTrainee extends Omit<Trainee, "frozen" | "trained"> {
  readonly frozen: Weights;
  readonly trained: Weights;
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

/** "add": the gradients are added to those of earlier parts. */
type Mode = "train" | "add" | "eval";

const noisePrefix = "noise:";

export class TrainProgram {
  readonly #trainee: PlacedTrainee;
  readonly #backend: Backend;
  readonly #options: ProgramOptions;
  readonly #cache: SessionCache;
  readonly #plans: Map<string, Plan> = new Map();
  #released = false;

  constructor(trainee: PlacedTrainee, backend: Backend, options: ProgramOptions = {}) {
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
   * @param earlier gradients that the new ones are added to, in other tensors than `gradients`
   */
  async lossAndGradients(
    batch: Batch,
    trained: Weights,
    gradients: Weights,
    total: number,
    rng: Rng,
    earlier?: Weights,
  ): Promise<number> {
    const paths = Object.keys(this.#trainee.trained);
    return this.#run(earlier ? "add" : "train", batch, async (executable, noise) => {
      const outputs = await runAnywhere(
        executable,
        [
          ...paths.map((path) => trained[path]!),
          ...Object.values(this.#trainee.frozen),
          ...batchTensors(batch),
          Tensor.scalar(total),
          ...(earlier ? paths.map((path) => earlier[path]!) : []),
          ...noise.map(
            ({ name, shape }) =>
              new Tensor("float32", shape, rng.fold(name).uniforms(sizeOf(shape))),
          ),
        ],
        [undefined, ...paths.map((path) => gradients[path])],
      );
      return (outputs[0] as Tensor).item();
    });
  }

  /** The loss of a batch without training: dropout off. */
  async evaluate(batch: Batch, trained: Weights): Promise<EvalResult> {
    const [loss, correct] = (await this.#run("eval", batch, (executable) =>
      runAnywhere(executable, [
        ...Object.keys(this.#trainee.trained).map((path) => trained[path]!),
        ...Object.values(this.#trainee.frozen),
        ...batchTensors(batch),
      ]),
    )) as Tensor[];
    const weight = batch.weights.data.reduce((a, b) => a + b, 0);
    return { loss: loss!.item(), correct: correct!.item(), weight };
  }

  /** Bytes that a training step of a batch of this shape needs beside weights, before it is loaded. */
  peakBytes(batch: Batch): number {
    return peakBytes(this.#trace("train", batch).program);
  }

  /** Runs with the program of a batch's shape, which is made once and kept while there is room. */
  async #run<R>(
    mode: Mode,
    batch: Batch,
    use: (executable: Executable, noise: readonly NoiseSite[]) => Promise<R>,
  ): Promise<R> {
    if (this.#released) throw new StateError("train: the program was released.");
    const key = `${mode}|${Object.entries(inOrder(batch)).map(([name, { shape }]) => `${name} ${shape}`)}`;
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

  #trace(mode: Mode, batch: Batch): Plan {
    const { model, frozen, trained } = this.#trainee;
    const noise: NoiseSite[] = [];
    const forward = (
      own: ValueRecord,
      fixed: ValueRecord,
      parts: BatchValues,
    ): { logits: Value; sumOfLoss: Value } => {
      const options: ContextOptions = {
        ...this.#trainee.adapt?.(own, fixed),
        training: mode !== "eval",
        checkpoint: mode !== "eval" && (this.#options.checkpoint ?? false),
        noise: (site, shape) => noiseInput(parts.ids, noise, site, shape),
      };
      const context = model.context({ ...fixed, ...own }, {}, options);
      const { logits } = model.forward(context, parts.ids, {
        ...(parts.rows && { rows: parts.rows }),
        ...(parts.positions && { positions: parts.positions }),
        ...(parts.segments && { mask: sameSegment(parts.segments) }),
      });
      const rows = crossEntropy(logits, parts.targets, { reduction: "none" });
      return { logits, sumOfLoss: sum(mul(rows, parts.weights)) };
    };
    const parts = inOrder(batch);
    const traced =
      mode !== "eval"
        ? trace(
            ((
              own: ValueRecord,
              fixed: ValueRecord,
              p: BatchValues,
              total: Value,
              earlier: ValueRecord,
            ) => {
              const loss = div(forward(own, fixed, p).sumOfLoss, total);
              const gradients = Object.entries(gradientOf(loss, own));
              if (mode === "train") return [loss, gradients.map(([, gradient]) => gradient)];
              return [loss, gradients.map(([path, more]) => add(earlier[path]!, more))];
            }) as never,
            [trained, frozen, parts, Tensor.scalar(0), mode === "add" ? trained : {}],
          )
        : trace(
            ((own: ValueRecord, fixed: ValueRecord, p: BatchValues) => {
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

type BatchValues = { readonly [K in keyof Batch]: Value };

/** The batch with its parts in one order, whoever made it. */
function inOrder(batch: Batch): Record<string, Tensor> {
  const { ids, segments, positions, rows, targets, weights } = batch;
  return {
    ids,
    ...(segments && { segments }),
    ...(positions && { positions }),
    ...(rows && { rows }),
    targets,
    weights,
  };
}

/** The batch's tensors in the order that their names are traced. */
function batchTensors(batch: Batch): Tensor[] {
  return Object.values(inOrder(batch));
}

/** Pairs of tokens of one example: (B, T) → (B, 1, T, T) bool. */
function sameSegment(segments: Value): Value {
  const [batch, length] = segments.shape as [number, number];
  return equal(reshape(segments, [batch, 1, length, 1]), reshape(segments, [batch, 1, 1, length]));
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
