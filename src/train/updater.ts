/**
 * Trained parameters, their gradients and optimiser state, side by side in memory that the engine
 * writes gradients into and one SIMD pass per parameter updates in place.
 */
import type { Backend, Executable } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { Arena, arenaLimit } from "../backend/simd/arena.ts";
import { Kernel } from "../backend/simd/kernel.ts";
import { DtypeError, MissingError, OptionError, ShapeError, StateError } from "../errors.ts";
import { add, mul, square } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { clipFactor } from "../optim/clip.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import { isFloat } from "../tensor/dtype.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

export type { ParameterGroup } from "../optim/groups.ts";

export interface UpdaterOptions {
  /** Largest global norm of the gradient, above 0; beyond it all gradients are scaled down. */
  readonly clipNorm?: number;
  /** By path: 0 or 1 per element, multiplied into the parameter after each update. */
  readonly masks?: Readonly<Record<string, Tensor>>;
  /** Keep a running mean of every parameter with this decay, in [0, 1). */
  readonly ema?: number;
  /** Make room to add up gradients of several parts of a batch; default false. */
  readonly accumulates?: boolean;
}

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
    checkOptions(params, groups, options);
    const owner = new Map<string, ParameterGroup>();
    for (const group of groups) {
      for (const path of group.paths) {
        if (owner.has(path)) throw new OptionError(`updater: "${path}" is in two groups.`);
        if (!Object.hasOwn(params, path)) throw new OptionError(`updater: no parameter "${path}".`);
        owner.set(path, group);
      }
    }
    const plans = Object.entries(params).map(([path, param]) => {
      const group = owner.get(path);
      if (!group) throw new OptionError(`updater: "${path}" is in no group.`);
      if (!isFloat(param.dtype)) {
        throw new DtypeError(
          `updater: "${path}" must hold floats to be trained, got ${param.dtype}.`,
        );
      }
      const refusal = group.optimizer.refusal?.(param.shape);
      if (refusal !== undefined) {
        throw new OptionError(
          `updater: "${path}" has shape ${showShape(param.shape)}, but ${refusal}.`,
        );
      }
      const slotShapes = Object.entries(group.optimizer.slots(param.shape));
      const extra =
        2 +
        Number(options.masks?.[path] !== undefined) +
        Number(options.ema !== undefined) +
        Number(options.accumulates ?? false);
      const bytes =
        extra * Arena.room(param.shape, "float32") +
        slotShapes.reduce((sum, [, shape]) => sum + Arena.room(shape, "float32"), 0);
      return { path, param, group, slotShapes, bytes };
    });
    const arenas = packArenas(plans.map((plan) => plan.bytes));
    this.#entries = plans.map(({ path, param, group, slotShapes }, i) => {
      const arena = arenas[i]!;
      const copy = (source: Tensor): Tensor<"float32"> => {
        if (!sameShape(source.shape, param.shape)) {
          throw new ShapeError(
            `updater: mask of "${path}" must have shape ${showShape(param.shape)}, got ${showShape(source.shape)}.`,
          );
        }
        const tensor = arena.allocate(param.shape, "float32");
        tensor.data.set(source.numbers());
        return tensor;
      };
      const mask = options.masks?.[path];
      return {
        path,
        group,
        arena,
        param: copy(param),
        gradient: arena.allocate(param.shape, "float32"),
        slots: Object.fromEntries(
          slotShapes.map(([name, shape]) => [name, arena.allocate(shape, "float32")]),
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
    if (!(learningRate >= 0 && learningRate < Infinity)) {
      throw new OptionError(`updater: learning rate must be a number from 0, got ${learningRate}.`);
    }
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
        ...optimizer.scalars(this.#step, learningRate * learningRateScale),
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
        body: (arrays, scalars) => ({ write: this.#update(entry, arrays, scalars) }),
      });
      this.#kernels.set(key, kernel);
    }
    kernel.run(entry.arena, arraysOf(entry), numbers);
  }

  /** The new contents of an entry's arrays, in graph operators. */
  #update(
    entry: Entry,
    arrays: Readonly<Record<string, Value>>,
    scalars: Readonly<Record<string, Value>>,
  ): Record<string, Value> {
    const { param, gradient, mask, ema, ...slots } = arrays;
    const scaled = mul(gradient!, scalars["gradientScale"]!);
    const next = entry.group.optimizer.update(param!, scaled, slots, scalars);
    const kept = mask ? mul(next.param, mask) : next.param;
    const decay = this.#options.ema;
    return {
      param: kept,
      ...next.slots,
      ...(ema && decay !== undefined && { ema: add(mul(ema, decay), mul(kept, 1 - decay)) }),
    };
  }

  async #runGraph(entry: Entry, numbers: Readonly<Record<string, number>>): Promise<void> {
    const arrays = arraysOf(entry);
    const key = `${this.#idOf(entry.group.optimizer)},${entry.param.shape},${!!entry.mask},${!!entry.ema}`;
    const names = Object.keys(numbers);
    let graph = this.#graphs.get(key);
    if (!graph) {
      const traced = trace(
        ((a: Record<string, Value>, s: Record<string, Value>) =>
          this.#update(entry, a, s)) as never,
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
  state(): { step: number; tensors: Record<string, Tensor> } {
    const tensors: Record<string, Tensor> = {};
    for (const { path, slots, ema } of this.#entries) {
      for (const [name, tensor] of Object.entries(slots)) tensors[`${path}.${name}`] = tensor;
      if (ema) tensors[`${path}.ema`] = ema;
    }
    return { step: this.#step, tensors };
  }

  /**
   * Takes parameters and state of an earlier run.
   * @throws MissingError, ShapeError or StateError naming a tensor that is missing, of another shape
   * or not kept here; nothing is changed then.
   */
  load(
    params: Readonly<Record<string, Tensor>>,
    state: { readonly step: number; readonly tensors: Readonly<Record<string, Tensor>> },
  ): void {
    const own = this.state().tensors;
    const pairs: (readonly [string, Tensor, Tensor | undefined])[] = [
      ...this.#entries.map((entry) => [entry.path, entry.param, params[entry.path]] as const),
      ...Object.entries(own).map(([name, tensor]) => [name, tensor, state.tensors[name]] as const),
    ];
    for (const [name, into, from] of pairs) {
      if (!from) throw new MissingError(`updater: the checkpoint lacks "${name}".`);
      if (!sameShape(into.shape, from.shape)) {
        throw new ShapeError(
          `updater: "${name}" must have shape ${showShape(into.shape)}, got ${showShape(from.shape)}.`,
        );
      }
    }
    for (const name of Object.keys(state.tensors)) {
      if (!Object.hasOwn(own, name)) {
        throw new StateError(
          `updater: the checkpoint has "${name}", which is not kept here — use the optimizer and options that wrote it.`,
        );
      }
    }
    if (!(Number.isSafeInteger(state.step) && state.step >= 0)) {
      throw new StateError(`updater: step must be a whole number from 0, got ${state.step}.`);
    }
    for (const [, into, from] of pairs) (into.data as Float32Array).set(from!.numbers());
    for (const { total } of this.#entries) total?.data.fill(0);
    this.#isAccumulating = false;
    this.#step = state.step;
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

function checkOptions(
  params: Readonly<Record<string, Tensor>>,
  groups: readonly ParameterGroup[],
  { clipNorm, ema, masks = {} }: UpdaterOptions,
): void {
  if (clipNorm !== undefined && !(clipNorm > 0)) {
    throw new OptionError(`updater: clipNorm must be above 0, got ${clipNorm}.`);
  }
  if (ema !== undefined && !(ema >= 0 && ema < 1)) {
    throw new OptionError(`updater: ema must be in [0, 1), got ${ema}.`);
  }
  for (const { learningRateScale: scale = 1 } of groups) {
    if (!(scale >= 0 && scale < Infinity)) {
      throw new OptionError(`updater: learningRateScale must be a number from 0, got ${scale}.`);
    }
  }
  for (const path of Object.keys(masks)) {
    if (Object.hasOwn(params, path)) continue;
    throw new OptionError(`updater: a mask is for "${path}", which is no parameter.`);
  }
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
