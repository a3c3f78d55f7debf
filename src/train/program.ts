/** The training step of a model as programs: loss and gradients, one per batch shape. */

import type { Adapter } from "../adapters/adapter.ts";
import type { StepHook } from "../adapters/hook.ts";
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
import { OptionError, StateError } from "../errors.ts";
import { add, div, mul } from "../ir/elementwise.ts";
import { Graph, type Value } from "../ir/graph.ts";
import { sum as sumOf } from "../ir/reduce.ts";
import type { LanguageModel } from "../models/model.ts";
import type { Context, ContextOptions, Module, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { type StaticShape, sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { causalLm } from "./causal-lm.ts";
import type { AnyObjective, Batch, ObjectiveResult, Scene } from "./objective.ts";

export type { Batch } from "./objective.ts";

/** A model, what of it is trained, and how trained numbers enter its forward pass. */
export interface Trainee<M extends Module = LanguageModel> {
  readonly model: M;
  readonly frozen: TensorRecord;
  readonly trained: TensorRecord;
  /** What the forward pass does with values that are not the model's own: adapters, packed weights. */
  readonly adapt?: (trained: ValueRecord, frozen: ValueRecord) => ContextOptions;
  /** Of that, what frozen weights in another form need. */
  readonly form?: (frozen: ValueRecord) => ContextOptions;
  /** The adapter that `adapt` applies, for decoding; its buffers are among the frozen ones. */
  readonly adapter?: Adapter;
  /** What happens around each step; the tensors that hooks change are among the frozen ones. */
  readonly hooks?: readonly StepHook[];
  /** A scalar that is added to the mean loss of each batch. */
  readonly penalty?: (values: ValueRecord, context: Context) => Value;
  /** Highest learning rate where none is given; default the objective's. */
  readonly learningRate?: number;
  /** How many times the learning rate a parameter takes; default 1. */
  readonly learningRateScale?: (path: string) => number;
  /** What is learnt; default: the next token, `causalLm`. */
  readonly objective?: AnyObjective;
  /** Positions that the model has: padding ends there. Default: no end. */
  readonly maxLength?: number;
}

/** Tensors by path, in host memory or on the backend's device. */
export type Weights = Readonly<Record<string, AnyTensor>>;

/** A trainee whose weights may be on the backend's device; of the trained ones only shapes are read. */
export interface PlacedTrainee extends Omit<Trainee<Module>, "frozen" | "trained"> {
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
  /** Σ weight · loss */
  readonly loss: number;
  /** Σ weight */
  readonly weight: number;
  /** The objective's other sums, by name. */
  readonly metrics: Readonly<Record<string, number>>;
}

/** Noise that a program asks for, in the order of its inputs. */
interface NoiseSite {
  readonly name: string;
  readonly shape: StaticShape;
}

interface Plan {
  readonly program: Program;
  readonly noise: readonly NoiseSite[];
  /** Names of outputs: of a judging program those after the first. */
  readonly names: readonly string[];
}

/** "add": the gradients are added to those of earlier parts. */
type Mode = "train" | "add" | "eval" | "inspect";

const noisePrefix = "noise:";
/** Where frozen weights lie that a model is compared with, beside its own. */
export const referencePrefix = "reference.";

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
    const [names, [loss, ...sums]] = await this.#measure("eval", batch, trained);
    const weight = batch.weights.data.reduce((a, b) => a + b, 0);
    const metrics = Object.fromEntries(names.map((name, i) => [name, sums[i]!.item()]));
    return { loss: loss!.item(), metrics, weight };
  }

  /**
   * What the objective reads off a batch beside its loss, by name.
   * @throws OptionError for an objective that has no `inspect`.
   */
  async inspect(batch: Batch, trained: Weights): Promise<TensorRecord> {
    const [names, tensors] = await this.#measure("inspect", batch, trained);
    return Object.fromEntries(names.map((name, i) => [name, tensors[i]!]));
  }

  /** Runs without training; names of outputs, and outputs. */
  async #measure(
    mode: "eval" | "inspect",
    batch: Batch,
    trained: Weights,
  ): Promise<[readonly string[], Tensor[]]> {
    return this.#run(mode, batch, async (executable, _, names) => {
      const outputs = await runAnywhere(executable, [
        ...Object.keys(this.#trainee.trained).map((path) => trained[path]!),
        ...Object.values(this.#trainee.frozen),
        ...batchTensors(batch),
      ]);
      return [names, outputs as Tensor[]];
    });
  }

  /** Bytes that a batch of this shape needs beside weights, before its program is loaded. */
  peakBytes(batch: Batch, mode: "train" | "eval" = "train"): number {
    return peakBytes(this.#trace(mode, batch).program);
  }

  /** Runs with the program of a batch's shape, which is made once and kept while there is room. */
  async #run<R>(
    mode: Mode,
    batch: Batch,
    use: (
      executable: Executable,
      noise: readonly NoiseSite[],
      names: readonly string[],
    ) => Promise<R>,
  ): Promise<R> {
    if (this.#released) throw new StateError("train: the program was released.");
    const key = `${mode}|${Object.entries(inOrder(batch)).map(([name, { shape }]) => `${name} ${shape}`)}`;
    let plan = this.#plans.get(key);
    if (!plan) {
      plan = this.#trace(mode, batch);
      this.#plans.set(key, plan);
    }
    const { program, noise, names } = plan;
    const lease = await this.#cache.acquire(key, () => ({
      bytes: peakBytes(program),
      load: () => this.#backend.load(program),
    }));
    for (const other of this.#plans.keys()) if (!this.#cache.has(other)) this.#plans.delete(other);
    try {
      return await use(lease.executable, noise, names);
    } finally {
      await lease.done();
    }
  }

  #trace(mode: Mode, batch: Batch): Plan {
    const { model, frozen, trained, objective = causalLm } = this.#trainee;
    const noise: NoiseSite[] = [];
    const names: string[] = [];
    const isTraining = mode === "train" || mode === "add";
    const sceneOf = (own: ValueRecord, fixed: ValueRecord, values: ValueRecord): Scene<Module> => {
      const any = values["weights"]!;
      const options: ContextOptions = {
        training: isTraining,
        checkpoint: isTraining && (this.#options.checkpoint ?? false),
        noise: (site, shape) => noiseInput(any, noise, site, shape),
      };
      const adapted = { ...this.#trainee.adapt?.(own, fixed), ...options };
      const all = { ...fixed, ...own };
      return {
        model,
        values: all,
        context: model.context(all, {}, adapted),
        reference: () => {
          const copy = below(referencePrefix, fixed);
          if (Object.keys(copy).length > 0) return model.context(copy);
          if (!this.#trainee.adapt) {
            throw new OptionError(
              `${objective.name}: compares with the model as it was, and here its own parameters change — train an adapter, or keep a copy (withReference).`,
            );
          }
          if (this.#trainee.adapter?.replaces?.length) {
            throw new OptionError(
              `${objective.name}: compares with the model as it was, whose weights ${this.#trainee.adapter.title} stands in for — keep a copy (withReference).`,
            );
          }
          return model.context(fixed, {}, this.#trainee.form?.(fixed) ?? {});
        },
      };
    };
    const outputsOf = (own: ValueRecord, fixed: ValueRecord, values: ValueRecord): Value[] => {
      const scene = sceneOf(own, fixed, values);
      if (mode === "inspect") {
        if (!objective.inspect) throw new OptionError(`${objective.name}: has nothing to inspect.`);
        const found = objective.inspect(scene, values);
        names.push(...Object.keys(found));
        return Object.values(found);
      }
      const { sum, metrics = {} } = objective.loss(scene, values) as ObjectiveResult;
      names.push(...Object.keys(metrics));
      return [sum, ...Object.values(metrics)];
    };
    const parts = inOrder(batch);
    const traced = isTraining
      ? trace(
          ((
            own: ValueRecord,
            fixed: ValueRecord,
            p: ValueRecord,
            total: Value,
            earlier: ValueRecord,
          ) => {
            const scene = sceneOf(own, fixed, p);
            const { sum } = objective.loss(scene, p) as ObjectiveResult;
            const { penalty } = this.#trainee;
            // Each part of a step bears the penalty by its share of the weights.
            const loss = div(
              penalty
                ? add(sum, mul(penalty(scene.values, scene.context), sumOf(p["weights"]!)))
                : sum,
              total,
            );
            const gradients = Object.entries(gradientOf(loss, own));
            if (mode === "train") return [loss, gradients.map(([, gradient]) => gradient)];
            return [loss, gradients.map(([path, more]) => add(earlier[path]!, more))];
          }) as never,
          [trained, frozen, parts, Tensor.scalar(0), mode === "add" ? trained : {}],
        )
      : trace(outputsOf as never, [trained, frozen, parts]);
    return { program: traced.program, noise, names };
  }

  async release(): Promise<void> {
    this.#released = true;
    this.#plans.clear();
    await this.#cache.clear();
  }
}

/** Values whose path begins with a prefix, without it. */
export function below(prefix: string, values: ValueRecord): ValueRecord {
  return Object.fromEntries(
    Object.entries(values).flatMap(([path, value]) =>
      path.startsWith(prefix) ? [[path.slice(prefix.length), value]] : [],
    ),
  );
}

/** The batch with its parts in one order, whoever made it. */
function inOrder(batch: Batch): Record<string, Tensor> {
  const entries = Object.entries(batch).filter(([, tensor]) => tensor !== undefined);
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** The batch's tensors in the order that their names are traced. */
function batchTensors(batch: Batch): Tensor[] {
  return Object.values(inOrder(batch));
}

/** An input of the outermost graph, whatever block asks for it. */
function noiseInput(any: Value, known: NoiseSite[], site: string, shape: StaticShape): Value {
  const again = any.graph.inputs.find(
    (input) => (input.node.attrs as { name: string }).name === noisePrefix + site,
  );
  if (again) return Graph.current!.lift(again);
  known.push({ name: site, shape });
  return Graph.current!.lift(any.graph.input(noisePrefix + site, { shape, dtype: "float32" }));
}
