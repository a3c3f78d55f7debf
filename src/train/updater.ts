/**
 * Trained parameters, their gradients and optimiser state, side by side in memory that the engine
 * writes gradients into and one SIMD pass per parameter updates in place.
 */
import type { Backend, Executable } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { Arena, arenaLimit } from "../backend/simd/arena.ts";
import { Kernel } from "../backend/simd/kernel.ts";
import { StateError } from "../errors.ts";
import { add, square } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { clipFactor } from "../optim/clip.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import type { StaticShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import {
  checkLearningRate,
  checkState,
  planUpdate,
  type UpdaterOptions,
  type UpdateState,
  updateOf,
} from "./update.ts";

export type { ParameterGroup } from "../optim/groups.ts";
export type { UpdaterOptions } from "./update.ts";

interface Entry {
  readonly path: string;
  readonly group: ParameterGroup;
  readonly arena: Arena;
  readonly param: Tensor<"float32">;
  readonly gradient: Tensor<"float32">;
  readonly slots: Readonly<Record<string, Tensor<"float32">>>;
  readonly mask: Tensor<"float32"> | undefined;
  readonly ema: Tensor<"float32"> | undefined;
  /** Sum of the gradients of earlier parts of the batch. */
  readonly total: Tensor<"float32"> | undefined;
}

/** What one step did. */
export interface UpdateInfo {
  /** Global norm of the gradient before clipping. */
  readonly gradientNorm: number;
  /** Whether the update was applied; not when the norm is not a finite number. */
  readonly isApplied: boolean;
}

const addKernel = new Kernel({
  arrays: ["total", "more"],
  scalars: [],
  // What was added is cleared, so that it counts once.
  body: ({ total, more }) => ({ write: { total: add(total!, more!), more: more!.graph.lift(0) } }),
});

const squaresKernel = new Kernel({
  arrays: ["x"],
  scalars: [],
  body: ({ x }) => ({ sum: square(x!) }),
});

export class Updater {
  readonly #entries: readonly Entry[];
  readonly #byPath: ReadonlyMap<string, Entry>;
  readonly #options: UpdaterOptions;
  readonly #backend: Backend;
  readonly #kernels: Map<string, Kernel> = new Map();
  readonly #graphs: Map<string, Executable> = new Map();
  readonly #optimizerIds: Map<Optimizer, number> = new Map();
  #isAccumulating = false;
  #step = 0;
  #origin = 0;

  /**
   * Copies the parameters into memory of its own.
   * @param groups each parameter belongs to exactly one
   * @throws OptionError when a path is in no group, in two, or unknown, when an optimiser cannot take
   * a parameter, or an option is outside its range.
   */
  constructor(
    params: Readonly<Record<string, Tensor>>,
    groups: readonly ParameterGroup[],
    backend: Backend,
    options: UpdaterOptions = {},
  ) {
    this.#options = options;
    this.#backend = backend;
    const plans = planUpdate(params, groups, options).map((plan) => {
      const { param, mask } = plan;
      const extra =
        2 +
        Number(mask !== undefined) +
        Number(options.ema !== undefined) +
        Number(options.accumulates ?? false);
      const bytes =
        extra * Arena.room(param.shape, "float32") +
        Object.values(plan.slots).reduce((sum, shape) => sum + Arena.room(shape, "float32"), 0);
      return { ...plan, bytes };
    });
    const arenas = packArenas(plans.map((plan) => plan.bytes));
    this.#entries = plans.map(({ path, param, group, slots, mask }, i) => {
      const arena = arenas[i]!;
      const copy = (source: Tensor): Tensor<"float32"> => {
        const tensor = arena.allocate(param.shape, "float32");
        tensor.data.set(source.numbers());
        return tensor;
      };
      return {
        path,
        group,
        arena,
        param: copy(param),
        gradient: arena.allocate(param.shape, "float32"),
        slots: Object.fromEntries(
          Object.entries(slots).map(([name, shape]) => [name, arena.allocate(shape, "float32")]),
        ),
        mask: mask && copy(mask),
        ema: options.ema === undefined ? undefined : copy(param),
        total: options.accumulates ? arena.allocate(param.shape, "float32") : undefined,
      };
    });
    this.#byPath = new Map(this.#entries.map((entry) => [entry.path, entry]));
  }

  /** The parameters themselves; their contents change with every step. */
  get params(): Record<string, Tensor<"float32">> {
    return Object.fromEntries(this.#entries.map((entry) => [entry.path, entry.param]));
  }

  /** Where the engine writes gradients, in the order of `params`. */
  get gradients(): Record<string, Tensor<"float32">> {
    return Object.fromEntries(this.#entries.map((entry) => [entry.path, entry.gradient]));
  }

  /** Running means of the parameters, if kept. */
  get ema(): Record<string, Tensor<"float32">> | undefined {
    if (this.#options.ema === undefined) return undefined;
    return Object.fromEntries(this.#entries.map((entry) => [entry.path, entry.ema!]));
  }

  /** Updates made so far. */
  get stepCount(): number {
    return this.#step;
  }

  /**
   * Adds the gradients just written to those of earlier parts of the batch, and clears them. The last
   * part may be left to `step`. Parts are added as they are: weigh their losses beforehand.
   * @throws StateError without the option `accumulates`.
   */
  accumulate(): void {
    for (const { arena, gradient, total } of this.#entries) {
      if (!total) {
        throw new StateError("updater: no room to accumulate — set the option accumulates.");
      }
      addKernel.run(arena, { total, more: gradient }, {});
    }
    this.#isAccumulating = true;
  }

  /** Adds what was accumulated to the last part, where the step reads it. */
  #collect(): void {
    if (!this.#isAccumulating) return;
    for (const { arena, gradient, total } of this.#entries) {
      addKernel.run(arena, { total: gradient, more: total! }, {});
    }
    this.#isAccumulating = false;
  }

  /** Global norm of the gradients, summed in double precision. */
  gradientNorm(): number {
    let squares = 0;
    for (const { arena, gradient } of this.#entries) {
      if (gradient.size > 0) squares += squaresKernel.run(arena, { x: gradient }, {});
    }
    return Math.sqrt(squares);
  }

  /**
   * Clips and applies the gradients.
   * @throws OptionError for a learning rate that is not a number from 0.
   */
  async step(learningRate: number): Promise<UpdateInfo> {
    checkLearningRate(learningRate);
    this.#collect();
    const { clipNorm } = this.#options;
    const gradientNorm = this.gradientNorm();
    if (!Number.isFinite(gradientNorm)) return { gradientNorm, isApplied: false };
    const scale = clipNorm === undefined ? 1 : clipFactor(gradientNorm, clipNorm);
    this.#step++;
    for (const entry of this.#entries) {
      if (entry.param.size === 0) continue;
      const { optimizer, learningRateScale = 1 } = entry.group;
      const numbers = {
        ...optimizer.scalars(this.#step - this.#origin, learningRate * learningRateScale),
        gradientScale: scale,
      };
      if (optimizer.elementwise) this.#runKernel(entry, numbers);
      else await this.#runGraph(entry, numbers);
    }
    return { gradientNorm, isApplied: true };
  }

  #runKernel(entry: Entry, numbers: Readonly<Record<string, number>>): void {
    const { optimizer } = entry.group;
    const key = `${this.#idOf(optimizer)},${!!entry.mask},${!!entry.ema}`;
    let kernel = this.#kernels.get(key);
    if (!kernel) {
      kernel = new Kernel({
        arrays: Object.keys(arraysOf(entry)),
        scalars: Object.keys(numbers),
        body: (arrays, scalars) => ({
          write: updateOf(entry.group, arrays, scalars, this.#options.ema),
        }),
      });
      this.#kernels.set(key, kernel);
    }
    kernel.run(entry.arena, arraysOf(entry), numbers);
  }

  async #runGraph(entry: Entry, numbers: Readonly<Record<string, number>>): Promise<void> {
    const arrays = arraysOf(entry);
    const key = `${this.#idOf(entry.group.optimizer)},${entry.param.shape},${!!entry.mask},${!!entry.ema}`;
    const names = Object.keys(numbers);
    let graph = this.#graphs.get(key);
    if (!graph) {
      const traced = trace(
        ((a: Record<string, Value>, s: Record<string, Value>) =>
          updateOf(entry.group, a, s, this.#options.ema)) as never,
        [arrays, Object.fromEntries(names.map((name) => [name, spec([])]))],
      );
      graph = await this.#backend.load(traced.program);
      this.#graphs.set(key, graph);
    }
    // An engine may not write to what it reads: results come in memory of their own.
    const outputs = await graph.run([
      ...Object.values(arrays),
      ...names.map((name) => Tensor.scalar(numbers[name]!)),
    ]);
    graph.outputs.forEach(({ name }, i) => {
      arrays[name]!.data.set(outputs[i]!.data as Float32Array);
    });
  }

  #idOf(optimizer: Optimizer): number {
    const known = this.#optimizerIds.get(optimizer);
    if (known !== undefined) return known;
    this.#optimizerIds.set(optimizer, this.#optimizerIds.size);
    return this.#optimizerIds.size - 1;
  }

  /**
   * Everything that a later run needs to go on, beside the parameters: `<path>.<slot>`. The tensors
   * are the updater's own and change with the next step.
   */
  state(): { step: number; origin: number; tensors: Record<string, Tensor> } {
    const tensors: Record<string, Tensor> = {};
    for (const { path, slots, ema } of this.#entries) {
      for (const [name, tensor] of Object.entries(slots)) tensors[`${path}.${name}`] = tensor;
      if (ema) tensors[`${path}.ema`] = ema;
    }
    return { step: this.#step, origin: this.#origin, tensors };
  }

  /** Moments become zeros and steps count from here; running means of parameters stay. */
  reset(): void {
    for (const { slots } of this.#entries) {
      for (const tensor of Object.values(slots)) tensor.data.fill(0);
    }
    this.#origin = this.#step;
  }

  /**
   * Takes parameters and state of an earlier run.
   * @throws MissingError, ShapeError or StateError naming a tensor that is missing, of another shape
   * or not kept here; nothing is changed then.
   */
  load(params: Readonly<Record<string, Tensor>>, state: UpdateState): void {
    const own = this.params;
    const ownState = this.state().tensors;
    checkState(shapesOf(own), shapesOf(ownState), params, state);
    const pairs = [
      ...Object.entries(own).map(([name, into]) => [into, params[name]!] as const),
      ...Object.entries(ownState).map(([name, into]) => [into, state.tensors[name]!] as const),
    ];
    for (const [into, from] of pairs) (into.data as Float32Array).set(from.numbers());
    for (const { total } of this.#entries) total?.data.fill(0);
    this.#isAccumulating = false;
    this.#step = state.step;
    this.#origin = state.origin ?? 0;
  }

  /** One parameter's arrays. */
  entry(path: string): Entry {
    const entry = this.#byPath.get(path);
    if (!entry) throw new StateError(`updater: no parameter "${path}".`);
    return entry;
  }

  /** Frees what the engine holds for optimisers that run as graphs; a later step loads it again. */
  async release(): Promise<void> {
    const graphs = [...this.#graphs.values()];
    this.#graphs.clear();
    await Promise.all(graphs.map((graph) => graph.release()));
  }
}

function shapesOf(tensors: Readonly<Record<string, Tensor>>): Record<string, StaticShape> {
  return Object.fromEntries(Object.entries(tensors).map(([name, { shape }]) => [name, shape]));
}

function arraysOf(entry: Entry): Record<string, Tensor<"float32">> {
  return {
    param: entry.param,
    gradient: entry.gradient,
    ...entry.slots,
    ...(entry.mask && { mask: entry.mask }),
    ...(entry.ema && { ema: entry.ema }),
  };
}

/** Arenas for things of these sizes, in order, each thing whole in one. */
function packArenas(sizes: readonly number[]): Arena[] {
  const groups: number[][] = [];
  let room = 0;
  sizes.forEach((bytes, i) => {
    if (groups.length === 0 || room + bytes > arenaLimit) {
      groups.push([]);
      room = 0;
    }
    groups.at(-1)!.push(i);
    room += bytes;
  });
  return groups.flatMap((group) => {
    const arena = new Arena(group.reduce((sum, i) => sum + sizes[i]!, 0));
    return group.map(() => arena);
  });
}
