/** Runs programs on ONNX Runtime: Node's CPU and WebGPU providers, or WebAssembly anywhere. */
import { StateError } from "../../errors.ts";
import type { Spec } from "../../ir/graph.ts";
import { type ArrayOf, allocate, type Dtype, viewOn } from "../../tensor/dtype.ts";
import { sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import {
  type Backend,
  bindDim,
  bindInputs,
  type Executable,
  type LoadOptions,
  type Program,
} from "../backend.ts";
import { type Lowered, lower, type OrtTarget } from "./lower.ts";

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
  /** Keep equal nodes apart (checkpoint regions). */
  readonly keepDuplicates: boolean;
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
  tensor(dtype: Dtype, data: unknown, dims: readonly number[]): OrtTensor;
  session(model: Uint8Array<ArrayBuffer>, options: SessionOptions): Promise<OrtSession>;
}

export interface OrtOptions {
  /** Threads of a session; default: all for large graphs, one for small ones. */
  readonly threads?: number;
}

/** Below this many multiply-adds a second thread costs more than it brings. */
const smallWork = 2e6;

export class OrtBackend implements Backend {
  readonly name: string;
  readonly binding: OrtBinding;
  readonly #threads: number | undefined;

  constructor(binding: OrtBinding, options: OrtOptions = {}) {
    this.binding = binding;
    this.name = binding.name;
    this.#threads = options.threads;
  }

  async load(
    program: Program,
    options: LoadOptions & { profile?: string } = {},
  ): Promise<OrtExecutable> {
    const lowered = lower(program, this.binding.target, options.frozen);
    const wanted = options.threads ?? this.#threads;
    const threads = wanted ?? (workOf(program) < smallWork ? 1 : this.binding.maxThreads);
    const session = await this.binding.session(lowered.model, {
      threads,
      keepDuplicates: lowered.hasRegions,
      ...(options.profile !== undefined && { profile: options.profile }),
    });
    return new OrtExecutable(this.binding, session, program, lowered, options.frozen);
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

  constructor(
    binding: OrtBinding,
    session: OrtSession,
    program: Program,
    lowered: Lowered,
    frozen: ReadonlyMap<string, Tensor> = new Map(),
  ) {
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
    const call = this.#prepare(inputs, into);
    this.#running = true;
    try {
      return this.#finish(call, await this.#session!.run(call.feeds, call.fetches));
    } finally {
      this.#running = false;
    }
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

  #prepare(inputs: readonly Tensor[], into: readonly (Tensor | undefined)[]): Call {
    if (!this.#session) throw new StateError("run: the executable was released — load it again.");
    if (this.#running) throw new StateError("run: still running — await the last run first.");
    const bindings = bindInputs("run", this.inputs, inputs);
    const feeds: Record<string, OrtTensor> = {};
    const buffers = new Map<ArrayBufferLike, readonly (readonly [number, number])[]>();
    inputs.forEach((tensor, i) => {
      feeds[this.lowered.inputs[i]!] = this.#wrap(tensor);
      const { buffer, byteOffset, byteLength } = tensor.data;
      const spans = buffers.get(buffer) ?? [];
      if (into.length > 0) buffers.set(buffer, [...spans, [byteOffset, byteOffset + byteLength]]);
    });
    const fetches: Record<string, OrtTensor | null> = {};
    const results = this.outputs.map((output, i) => {
      const name = this.lowered.outputs[i]!;
      const shape = output.shape.map((dim) => bindDim(dim, bindings));
      const given = into[i];
      if (given) {
        bindInputs("run: output", [{ ...output, shape }], [given]);
        const { buffer, byteOffset, byteLength } = given.data;
        const overlaps = buffers
          .get(buffer)
          ?.some(([from, to]) => byteOffset < to && from < byteOffset + byteLength);
        if (overlaps && byteLength > 0) {
          throw new StateError(
            `run: output "${output.name}" shares memory with an input — give it memory of its own.`,
          );
        }
      }
      const tensor =
        given ??
        (this.#binding.writesInPlace
          ? new Tensor(output.dtype, shape, allocate(output.dtype, sizeOf(shape)))
          : undefined);
      // The binding does not take empty preallocated tensors.
      const usable = tensor && this.#binding.writesInPlace && tensor.size > 0;
      fetches[name] = usable ? this.#wrap(tensor) : null;
      return tensor;
    });
    return { feeds, fetches, results };
  }

  #finish(call: Call, returned: Record<string, OrtTensor>): Tensor[] {
    return call.results.map((tensor, i) => {
      if (tensor && (this.#binding.writesInPlace || tensor.size === 0)) return tensor;
      const { dtype } = this.outputs[i]!;
      const { data, dims } = returned[this.lowered.outputs[i]!]!;
      const bytes = data as ArrayOf[Dtype];
      const view = viewOn(dtype, bytes.buffer, bytes.byteOffset, bytes.length);
      if (!tensor) return new Tensor(dtype, dims, view);
      (tensor.data as Float32Array).set(view as Float32Array);
      return tensor;
    });
  }

  #wrap(tensor: Tensor): OrtTensor {
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

interface Call {
  readonly feeds: Record<string, OrtTensor>;
  readonly fetches: Record<string, OrtTensor | null>;
  readonly results: readonly (Tensor | undefined)[];
}
