/** Runs programs on ONNX Runtime: Node's CPU and WebGPU providers, or WebAssembly anywhere. */
import { ShapeError, StateError, UnsupportedError } from "../../errors.ts";
import type { Spec } from "../../ir/graph.ts";
import { type ArrayOf, byteSize, type Dtype, viewOn } from "../../tensor/dtype.ts";
import { isStatic, sameShape, showShape, sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import {
  type AnyTensor,
  type Backend,
  bindDim,
  bindInputs,
  type Executable,
  type LoadOptions,
  type Program,
} from "../backend.ts";
import type { GpuDevice } from "./device.ts";
import { type Lowered, lower } from "./lower.ts";
import { peakBytes } from "./peak.ts";
import type { OrtTarget } from "./target.ts";

/** A tensor as the binding takes it. */
export interface OrtTensor {
  readonly type: string;
  readonly data: unknown;
  readonly dims: readonly number[];
}

/** A loaded model. `run` may write to the given outputs; its result is then not used. */
export interface OrtSession {
  run(
    feeds: Record<string, OrtTensor>,
    fetches: Record<string, OrtTensor | null>,
  ): Promise<Record<string, OrtTensor>>;
  runSync?(
    feeds: Record<string, OrtTensor>,
    fetches: Record<string, OrtTensor | null>,
  ): Record<string, OrtTensor>;
  release(): Promise<void>;
}

export interface SessionOptions {
  readonly threads: number;
  readonly withoutOptimizers?: readonly string[];
  /** The model holds weights. */
  readonly hasStored?: boolean;
  /** The model's first output is the one that stops results from being copied. */
  readonly isQuiet?: boolean;
  /** Keep no memory between runs, where the binding can do without. */
  readonly withoutArena?: boolean;
  readonly profile?: string;
}

/** What differs between ONNX Runtime for Node and for the web. */
export interface OrtBinding {
  readonly name: string;
  readonly version: string;
  readonly target: OrtTarget;
  readonly maxThreads: number;
  /** Whether outputs are written to the tensors given as fetches. */
  readonly writesInPlace: boolean;
  /** Whether a quiet model (see `lower.ts`) saves the copy of its results. */
  readonly canBeQuiet: boolean;
  /** Whether `withoutArena` makes a difference. */
  readonly hasArenas?: boolean;
  /** Memory of a device whose tensors sessions read and write directly. */
  readonly device?: GpuDevice;
  tensor(dtype: Dtype, data: unknown, dims: readonly number[]): OrtTensor;
  session(model: Uint8Array<ArrayBuffer>, options: SessionOptions): Promise<OrtSession>;
}

export interface OrtOptions {
  /** Threads of a session; default: all for large graphs, one for small ones. */
  readonly threads?: number;
}

/** Below this many multiply-adds a second thread costs more than it brings. */
const smallWork = 2e6;

/**
 * After so many runs a session of a small program is loaded again, with an arena. Until then it takes memory
 * at each run and gives it back: sessions that come and go then share what one of them needs.
 */
const runsWithoutArena = 64;

/** Larger programs have an arena at once: the system would map their blocks anew at every run. */
const smallBytes = 2 ** 25;

/** Whether an arena is worth its memory only after some runs. */
function isSmall(program: Program): boolean {
  const isOpen = program.graph.inputs.some(({ shape }) => !isStatic(shape));
  return !isOpen && workOf(program) >= smallWork && peakBytes(program) <= smallBytes;
}

/** Copying fewer bytes than this costs less than the exception that saves it. */
const quietBytes = 2 ** 18;

function outputBytes(program: Program): number {
  return program.outputs.reduce((total, { shape, dtype }) => {
    const size = shape.reduce<number>((n, dim) => n * (typeof dim === "number" ? dim : 1), 1);
    return total + size * byteSize(dtype);
  }, 0);
}

export class OrtBackend implements Backend {
  readonly name: string;
  readonly binding: OrtBinding;
  readonly #threads: number | undefined;

  constructor(binding: OrtBinding, options: OrtOptions = {}) {
    this.binding = binding;
    this.name = binding.name;
    this.#threads = options.threads;
  }

  get device(): GpuDevice | undefined {
    return this.binding.device;
  }

  async load(
    program: Program,
    options: LoadOptions & { profile?: string } = {},
  ): Promise<OrtExecutable> {
    const isQuiet = this.binding.canBeQuiet && outputBytes(program) >= quietBytes;
    const lowered = lower(program, this.binding.target, options.frozen, { isQuiet });
    const wanted = options.threads ?? this.#threads;
    const threads = wanted ?? (workOf(program) < smallWork ? 1 : this.binding.maxThreads);
    const hasStored = (options.frozen?.size ?? 0) > 0;
    const session = (withoutArena: boolean): Promise<OrtSession> =>
      this.binding.session(lowered.model, {
        threads,
        withoutArena,
        withoutOptimizers: lowered.withoutOptimizers,
        isQuiet,
        hasStored,
        ...(options.profile !== undefined && { profile: options.profile }),
      });
    const isFixed = hasStored || options.profile !== undefined || !this.binding.hasArenas;
    const isTrial = !isFixed && isSmall(program);
    const withArena = isTrial ? (): Promise<OrtSession> => session(false) : undefined;
    return new OrtExecutable(
      this.binding,
      await session(isTrial),
      program,
      lowered,
      withArena,
      options.frozen,
    );
  }
}

/** Multiply-adds of the program's products, scans counted by their steps; symbols count as one. */
export function workOf(program: Pick<Program, "graph">): number {
  let work = 0;
  const size = (dims: readonly (number | string)[]): number =>
    dims.reduce<number>((product, dim) => product * (typeof dim === "number" ? dim : 1), 1);
  for (const node of program.graph.nodes) {
    const out = node.outputs[0]!.shape;
    if (node.op === "dot") {
      const { transA } = node.attrs as { transA: boolean };
      const a = node.inputs[0]!.shape;
      work += size(out) * size([a[a.length - (transA ? 2 : 1)]!]);
    } else if (node.op === "conv" || node.op === "convTranspose") {
      work += size(out) * size(node.inputs[1]!.shape.slice(1));
    } else if (node.op === "scan") {
      const { body, length } = node.attrs as { body: Program["graph"]; length: number };
      work += length * workOf({ graph: body });
    } else if (node.op === "call") {
      work += workOf({ graph: (node.attrs as { body: Program["graph"] }).body });
    } else work += size(out);
  }
  return work;
}

class OrtExecutable implements Executable {
  readonly inputs: readonly (Spec & { readonly name: string })[];
  readonly outputs: readonly (Spec & { readonly name: string })[];
  readonly lowered: Omit<Lowered, "model">;
  readonly #binding: OrtBinding;
  #session: OrtSession | undefined;
  /** Wrapping a tensor for the binding costs more than a lookup. */
  readonly #wrapped: WeakMap<Tensor, OrtTensor> = new WeakMap();
  #running = false;
  #runs = 0;
  /** Loads the session again with an arena, once that pays. */
  #withArena: (() => Promise<OrtSession>) | undefined;

  constructor(
    binding: OrtBinding,
    session: OrtSession,
    program: Program,
    lowered: Lowered,
    withArena: (() => Promise<OrtSession>) | undefined,
    frozen: ReadonlyMap<string, Tensor> = new Map(),
  ) {
    this.#withArena = withArena;
    this.#binding = binding;
    this.#session = session;
    const { model: _, ...rest } = lowered;
    this.lowered = rest;
    this.inputs = program.inputs.flatMap((name, i) => {
      const { shape, dtype } = program.graph.inputs[i]!;
      return frozen.has(name) ? [] : [{ name, shape, dtype }];
    });
    this.outputs = program.outputs.map(({ shape, dtype }, i) => ({
      name: program.outputNames[i]!,
      shape,
      dtype,
    }));
  }

  async run(
    inputs: readonly Tensor[],
    into: readonly (Tensor | undefined)[] = [],
  ): Promise<Tensor[]> {
    return this.#run(inputs, into);
  }

  /** @throws UnsupportedError where the backend keeps no tensors on a device. */
  async runOnDevice(
    inputs: readonly AnyTensor[],
    into: readonly (AnyTensor | undefined)[] = [],
  ): Promise<AnyTensor[]> {
    if (!this.#binding.device) {
      throw new UnsupportedError(
        `runOnDevice: ${this.#binding.name} keeps no tensors on a device — use run.`,
      );
    }
    return this.#run(inputs, into);
  }

  async #run<T extends AnyTensor>(
    inputs: readonly T[],
    into: readonly (T | undefined)[],
  ): Promise<T[]> {
    const call = this.#prepare(inputs, into);
    this.#running = true;
    try {
      if (this.#withArena && ++this.#runs > runsWithoutArena)
        await this.#takeArena(this.#withArena);
      return this.#finish(call, await this.#session!.run(call.feeds, call.fetches));
    } finally {
      this.#running = false;
    }
  }

  async #takeArena(load: () => Promise<OrtSession>): Promise<void> {
    this.#withArena = undefined;
    const former = this.#session;
    this.#session = await load();
    await former?.release();
  }

  get runSync(): Executable["runSync"] & {} {
    return (inputs, into = []) => {
      const session = this.#session;
      if (session && !session.runSync) {
        throw new StateError(`runSync: ${this.#binding.name} only runs async — use run.`);
      }
      const call = this.#prepare(inputs, into);
      return this.#finish(call, session!.runSync!(call.feeds, call.fetches));
    };
  }

  #prepare<T extends AnyTensor>(inputs: readonly T[], into: readonly (T | undefined)[]): Call<T> {
    if (!this.#session) throw new StateError("run: the executable was released — load it again.");
    if (this.#running) throw new StateError("run: still running — await the last run first.");
    const bindings = bindInputs("run", this.inputs, inputs);
    const feeds: Record<string, OrtTensor> = {};
    inputs.forEach((tensor, i) => {
      feeds[this.lowered.inputs[i]!] = this.#wrap(tensor);
    });
    if (into.some((tensor) => tensor)) checkApart(this.inputs, inputs, this.outputs, into);
    const { writesInPlace } = this.#binding;
    const fetches: Record<string, OrtTensor | null> = {};
    if (this.lowered.quiet !== undefined) fetches[this.lowered.quiet] = null;
    const results = this.outputs.map((output, i) => {
      const { name, dtype } = output;
      const shape = output.shape.map((dim) => bindDim(dim, bindings));
      const given = into[i];
      if (given && (given.dtype !== dtype || !sameShape(given.shape, shape))) {
        throw new ShapeError(
          `run: output "${name}" is ${dtype} ${showShape(shape)}, the tensor to write to ${given.dtype} ${showShape(given.shape)}.`,
        );
      }
      const tensor: AnyTensor | undefined =
        given ?? (writesInPlace ? Tensor.zeros(shape, dtype) : undefined);
      // The binding does not take empty preallocated tensors.
      const isWritten = writesInPlace || !(tensor instanceof Tensor);
      const usable = isWritten && tensor !== undefined && sizeOf(shape) > 0;
      fetches[this.lowered.outputs[i]!] = usable ? this.#wrap(tensor) : null;
      return tensor as T | undefined;
    });
    this.#binding.device?.count(bytesOf(inputs), 0);
    return { feeds, fetches, results };
  }

  #finish<T extends AnyTensor>(call: Call<T>, returned: Record<string, OrtTensor>): T[] {
    const results = call.results.map((tensor, i) => {
      if (tensor && !(tensor instanceof Tensor)) return tensor;
      if (tensor && (this.#binding.writesInPlace || tensor.size === 0)) return tensor;
      const { dtype } = this.outputs[i]!;
      const { data, dims } = returned[this.lowered.outputs[i]!]!;
      const bytes = data as ArrayOf[Dtype];
      const view = viewOn(dtype, bytes.buffer, bytes.byteOffset, bytes.length);
      if (!tensor) return new Tensor(dtype, dims, view);
      (tensor.data as Float32Array).set(view as Float32Array);
      return tensor;
    });
    this.#binding.device?.count(0, bytesOf(results));
    return results as T[];
  }

  #wrap(tensor: AnyTensor): OrtTensor {
    if (!(tensor instanceof Tensor)) return this.#binding.device!.wrap(tensor);
    let wrapped = this.#wrapped.get(tensor);
    if (!wrapped) {
      wrapped = this.#binding.tensor(tensor.dtype, tensor.data, tensor.shape);
      this.#wrapped.set(tensor, wrapped);
    }
    return wrapped;
  }

  async release(): Promise<void> {
    if (this.#running) throw new StateError("release: still running — await the last run first.");
    const session = this.#session;
    this.#session = undefined;
    await session?.release();
  }
}

/**
 * ONNX Runtime gives wrong numbers, and no error, where an output lies on an input.
 * @throws StateError naming the two that overlap.
 */
function checkApart(
  inputSpecs: Executable["inputs"],
  inputs: readonly AnyTensor[],
  outputSpecs: Executable["outputs"],
  outputs: readonly (AnyTensor | undefined)[],
): void {
  type Span = readonly [from: number, to: number, what: () => string];
  const spans = new Map<object, Span[]>();
  const claim = (tensor: AnyTensor, what: () => string): void => {
    const [memory, from, to] = placeOf(tensor);
    const span: Span = [from, to, what];
    const others = spans.get(memory);
    if (others) others.push(span);
    else spans.set(memory, [span]);
  };
  inputs.forEach((tensor, i) => {
    claim(tensor, () => `input "${inputSpecs[i]!.name}"`);
  });
  outputs.forEach((tensor, i) => {
    if (!tensor || sizeOf(tensor.shape) === 0) return;
    const [memory, from, to] = placeOf(tensor);
    const other = spans.get(memory)?.find((span) => span[0] < to && from < span[1]);
    if (other) {
      throw new StateError(
        `run: output "${outputSpecs[i]!.name}" shares memory with ${other[2]()} — give it memory of its own.`,
      );
    }
    claim(tensor, () => `output "${outputSpecs[i]!.name}"`);
  });
}

/** The memory that a tensor lies in, and where in it; a tensor on a device has one of its own. */
function placeOf(tensor: AnyTensor): readonly [memory: object, from: number, to: number] {
  if (!(tensor instanceof Tensor)) return [tensor, 0, 1];
  const { buffer, byteOffset, byteLength } = tensor.data;
  return [buffer, byteOffset, byteOffset + byteLength];
}

/** Bytes of the tensors that are in host memory. */
function bytesOf(tensors: readonly (AnyTensor | undefined)[]): number {
  return tensors.reduce(
    (total, tensor) => total + (tensor instanceof Tensor ? tensor.data.byteLength : 0),
    0,
  );
}

interface Call<T extends AnyTensor> {
  readonly feeds: Record<string, OrtTensor>;
  readonly fetches: Record<string, OrtTensor | null>;
  readonly results: readonly (T | undefined)[];
}
