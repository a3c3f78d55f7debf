/**
 * Recorded results of other people's code (`test/parity`, written by `scripts/parity`), and the five
 * optimiser steps that the training records hold, replayed with our gradients.
 */
import { readFileSync } from "node:fs";
import { valueAndGradWithAux } from "../../src/autodiff/grad.ts";
import type { Backend } from "../../src/backend/backend.ts";
import { compile, evaluate } from "../../src/backend/compile.ts";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { mul } from "../../src/ir/elementwise.ts";
import type { Value } from "../../src/ir/graph.ts";
import { sum } from "../../src/ir/reduce.ts";
import type { TensorRecord, ValueRecord } from "../../src/nn/index.ts";
import type { Dtype } from "../../src/tensor/dtype.ts";
import type { StaticShape } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import { allclose } from "./allclose.ts";
import { tolerance } from "./tolerance.ts";

/** A tensor as a fixture writes it. */
export interface RawTensor {
  readonly shape: StaticShape;
  readonly dtype: Dtype;
  readonly data: readonly number[];
}

export type RawTensors = Readonly<Record<string, RawTensor>>;

export interface OptimizerSpec {
  readonly type: "AdamW" | "SGD";
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly momentum: number;
  readonly weightDecay: number;
  readonly clipGlobalNorm?: number;
}

/** What a training record holds: losses before each of five updates and one after. */
export interface TrainingRecord {
  readonly config: Readonly<Record<string, unknown>>;
  readonly weights: RawTensors;
  readonly inputs: RawTensors;
  readonly logits: RawTensor;
  readonly optimizer: OptimizerSpec;
  readonly losses: readonly number[];
  readonly gradients: RawTensors;
  readonly gradientNorms?: readonly number[];
  readonly finalWeights: RawTensors;
}

/** The contents of `test/parity/<name>.json`. */
export function fixture<T>(name: string): T {
  const path = new URL(`../parity/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(path, "utf8")) as T;
}

export function tensorOf(raw: RawTensor): Tensor {
  return Tensor.from(raw.data, raw.shape, raw.dtype);
}

export function tensorsOf(raw: RawTensors): TensorRecord {
  return Object.fromEntries(Object.entries(raw).map(([name, value]) => [name, tensorOf(value)]));
}

let oneThread: Promise<Backend> | undefined;

/** The backend of parity tests: one thread, so that sums have one order. */
export function parityBackend(): Promise<Backend> {
  oneThread ??= nodeOrt({ threads: 1 });
  return oneThread;
}

/** max |actual - expected| / max |expected| */
export function relativeDifference(actual: Tensor, expected: Tensor): number {
  const [a, e] = [actual.numbers(), expected.numbers()];
  let [difference, size] = [0, 0];
  for (let i = 0; i < e.length; i++) {
    difference = Math.max(difference, Math.abs(a[i]! - e[i]!));
    size = Math.max(size, Math.abs(e[i]!));
  }
  return difference / Math.max(size, 1e-30);
}

/** AdamW or Nesterov SGD as PyTorch states them, on float32 parameters, in place. */
class Optimizer {
  readonly #spec: OptimizerSpec;
  readonly #moments: Map<string, [Float64Array, Float64Array]> = new Map();
  #step = 0;

  constructor(spec: OptimizerSpec) {
    this.#spec = spec;
  }

  /** @returns the norm of all gradients before clipping */
  update(params: TensorRecord, gradients: TensorRecord): number {
    const { type, lr, betas, eps, momentum, weightDecay, clipGlobalNorm } = this.#spec;
    this.#step++;
    let squares = 0;
    for (const gradient of Object.values(gradients)) {
      for (const g of gradient.data as Float32Array) squares += g * g;
    }
    const norm = Math.sqrt(squares);
    const factor = clipGlobalNorm ? Math.min(1, clipGlobalNorm / (norm + 1e-6)) : 1;
    for (const [name, gradient] of Object.entries(gradients)) {
      const p = params[name]!.data as Float32Array;
      const fresh = (): Float64Array => new Float64Array(p.length);
      const [m, v] = this.#moments.get(name) ?? [fresh(), fresh()];
      this.#moments.set(name, [m, v]);
      for (let i = 0; i < p.length; i++) {
        let g = (gradient.data[i] as number) * factor;
        if (type === "SGD") {
          g += weightDecay * p[i]!;
          m[i] = this.#step === 1 ? g : momentum * m[i]! + g;
          p[i]! -= lr * (g + momentum * m[i]!);
          continue;
        }
        p[i]! *= 1 - lr * weightDecay;
        m[i] = betas[0] * m[i]! + (1 - betas[0]) * g;
        v[i] = betas[1] * v[i]! + (1 - betas[1]) * g * g;
        const root = Math.sqrt(v[i]! / (1 - betas[1] ** this.#step)) + eps;
        p[i]! -= (lr * (m[i]! / (1 - betas[0] ** this.#step))) / root;
      }
    }
    return norm;
  }
}

/** A loss as the replay calls it: the state it returns is given to the next step. */
export type ReplayedLoss = (
  params: ValueRecord,
  state: ValueRecord,
  inputs: ValueRecord,
) => readonly [loss: Value, newState: Record<string, Value>];

export interface Replayed {
  readonly losses: readonly number[];
  readonly norms: readonly number[];
  /** Of the first step, before clipping. */
  readonly gradients: TensorRecord;
  readonly params: TensorRecord;
  /** After the five updates: after five forward passes. */
  readonly state: TensorRecord;
}

/** Runs the recorded number of updates from the recorded weights. */
export async function replay(
  record: TrainingRecord,
  loss: ReplayedLoss,
  initial: { readonly params?: TensorRecord; readonly state?: TensorRecord } = {},
): Promise<Replayed> {
  const inputs = tensorsOf(record.inputs);
  const params = Object.fromEntries(
    Object.entries(initial.params ?? tensorsOf(record.weights)).map(([n, t]) => [n, t.clone()]),
  );
  let state = initial.state ?? {};
  const step = await compile<readonly [Tensor, TensorRecord, TensorRecord]>(
    (p: ValueRecord, s: ValueRecord, x: ValueRecord) => valueAndGradWithAux(loss)(p, s, x),
    [params, state, inputs],
    { backend: await parityBackend() },
  );
  const optimizer = new Optimizer(record.optimizer);
  const losses: number[] = [];
  const norms: number[] = [];
  let first: TensorRecord | undefined;
  for (let i = 0; i < record.losses.length - 1; i++) {
    const [value, newState, gradients] = await step.run(params, state, inputs);
    losses.push(value.item());
    state = newState;
    first ??= gradients;
    norms.push(optimizer.update(params, gradients));
  }
  const [last] = await step.run(params, state, inputs);
  losses.push(last.item());
  await step.release();
  return { losses, norms, gradients: first!, params, state };
}

/**
 * Asserts that a replay equals its record.
 * @returns the largest relative difference of a loss
 */
export function expectRecorded(record: TrainingRecord, replayed: Replayed): number {
  const compare = (what: string, actual: readonly number[], expected: readonly number[]): void => {
    allclose(Tensor.from(actual), Tensor.from(expected), tolerance.float32, what);
  };
  compare("losses", replayed.losses, record.losses);
  if (record.gradientNorms) compare("gradient norms", replayed.norms, record.gradientNorms);
  for (const [name, raw] of Object.entries(record.gradients)) {
    allclose(replayed.gradients[name]!, tensorOf(raw), tolerance.float32, `gradient of ${name}`);
  }
  for (const [name, raw] of Object.entries(record.finalWeights)) {
    allclose(replayed.params[name]!, tensorOf(raw), tolerance.float32, `final ${name}`);
  }
  return Math.max(
    ...record.losses.map((loss, i) => Math.abs(replayed.losses[i]! - loss) / Math.abs(loss)),
  );
}

/** One recorded call: its output, and the gradients of Σ output · gradOutput. */
export interface RecordedCall {
  readonly op?: string;
  // biome-ignore lint/suspicious/noExplicitAny: each function has options of its own
  readonly options: Readonly<Record<string, any>>;
  readonly inputs: RawTensors;
  readonly gradOutput: RawTensor;
  readonly output: RawTensor;
  readonly gradients: RawTensors;
}

/** Recorded calls of one function of torch.nn.functional. */
export function recordedCalls(op: string): readonly RecordedCall[] {
  const { cases } = fixture<{ readonly cases: readonly RecordedCall[] }>("losses-layers");
  const found = cases.filter((call) => call.op === op);
  if (found.length === 0) throw new Error(`losses-layers has no call of ${op}`);
  return found;
}

/** Asserts that a function gives the recorded output and gradients. */
export async function expectCall(
  call: RecordedCall,
  fn: (inputs: ValueRecord) => Value,
  within: number = tolerance.float32,
): Promise<void> {
  const inputs = tensorsOf(call.inputs);
  const names = Object.keys(call.gradients);
  const free = Object.fromEntries(names.map((name) => [name, inputs[name]!]));
  const [, output, gradients] = await evaluate<readonly [Tensor, Tensor, TensorRecord]>(
    await parityBackend(),
    (x: ValueRecord, rest: ValueRecord, grad: Value) =>
      valueAndGradWithAux((y: ValueRecord) => {
        const result = fn({ ...rest, ...y });
        return [sum(mul(result, grad)), result] as const;
      })(x),
    free,
    inputs,
    tensorOf(call.gradOutput),
  );
  const what = `${call.op ?? "call"} ${JSON.stringify(call.options)}`;
  allclose(output, tensorOf(call.output), within, what);
  for (const name of names) {
    allclose(gradients[name]!, tensorOf(call.gradients[name]!), within, `${what}: d${name}`);
  }
}
