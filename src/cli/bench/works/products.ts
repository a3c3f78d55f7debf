/**
 * How much of the machine the products of a LoRA step use: the rate of those with M, N, K >= 256,
 * by ONNX Runtime's own profile, beside that of a 1024-cube in the same process and round.
 */
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Backend,
  dot,
  type Executable,
  Rng,
  spec,
  Tensor,
  trace,
  type Value,
} from "../../../index.ts";
import type { ProductRound } from "../arm.ts";
import { median } from "../results.ts";
import type { Work } from "../serve.ts";
import { joined, loadGpt, trainer } from "./gpt.ts";
import { engine, versionOf } from "./setup.ts";

const cube = 1024;
const least = 256;
const cubesPerRound = 8;

type TypedShape = Readonly<Record<string, readonly number[]>>;

/** What we read of an event of ONNX Runtime's profile. */
interface ProfileEvent {
  readonly cat: string;
  readonly name: string;
  readonly ts: number;
  readonly dur: number;
  readonly args?: {
    readonly op_name?: string;
    readonly input_type_shape?: readonly TypedShape[];
    readonly output_type_shape?: readonly TypedShape[];
  };
}

export interface Product {
  /** 2 M N K, of all matrices of a batch. */
  readonly flops: number;
  readonly least: number;
}

/** The product that a node computes; the sizes alone tell, whether an input is transposed or not. */
export function productOf({ args }: Pick<ProfileEvent, "args">): Product | undefined {
  if (!args || !/^(?:Gemm|(?:Fused|Transpose)?MatMul)$/.test(args.op_name ?? "")) return undefined;
  const [a, out] = [args.input_type_shape?.[0], args.output_type_shape?.[0]].map(
    (typed) => typed && Object.values(typed)[0],
  );
  if (!a || !out || a.length < 2 || out.length < 2) return undefined;
  const size = (shape: readonly number[]): number => shape.reduce((n, dim) => n * dim, 1);
  const [m, n] = out.slice(-2) as [number, number];
  const k = size(a.slice(-2)) / m;
  return { flops: 2 * size(out) * k, least: Math.min(m, n, k) };
}

interface Run {
  readonly ms: number;
  readonly flops: number;
  readonly productUs: number;
}

/** Large products of each run in a profile, in order. */
function runsOf(events: readonly ProfileEvent[]): Run[] {
  const runs = events
    .filter(({ name }) => name === "model_run")
    .sort((x, y) => x.ts - y.ts)
    .map(({ ts, dur }) => ({ from: ts, to: ts + dur, ms: dur / 1000, flops: 0, productUs: 0 }));
  for (const event of events) {
    const product = event.cat === "Node" ? productOf(event) : undefined;
    if (!product || product.least < least) continue;
    const run = runs.find(({ from, to }) => event.ts >= from && event.ts <= to);
    if (!run) continue;
    run.flops += product.flops;
    run.productUs += event.dur;
  }
  return runs;
}

export async function products(threads: number, path: string): Promise<Work> {
  const folder = await mkdtemp(join(tmpdir(), "plasticity-profile-"));
  const backend = await engine(threads);
  const loads: Executable[] = [];
  const profiled = (name: string): Backend => ({
    name: backend.name,
    load: async (program, options) => {
      const loaded = await backend.load(program, { ...options, profile: join(folder, name) });
      loads.push(loaded);
      return loaded;
    },
  });
  const loaded = await loadGpt(path);
  const train = trainer(joined(loaded), loaded, profiled("step"), 1e-4);
  const shape = [cube, cube];
  const { program } = trace((a: Value, b: Value) => dot(a, b), [spec(shape), spec(shape)]);
  const gemm = await profiled("gemm").load(program);
  const fill = (name: string): Tensor =>
    new Tensor("float32", shape, new Rng(0).fold(name).uniforms(cube * cube));
  const inputs = [fill("a"), fill("b")];
  const output = Tensor.zeros(shape, "float32");

  const read = async (name: string): Promise<Run[]> => {
    const file = (await readdir(folder)).find((item) => item.startsWith(name))!;
    return runsOf(JSON.parse(await readFile(join(folder, file), "utf8")) as ProfileEvent[]);
  };
  const rate = (run: Run): number => run.flops / run.productUs / 1000;
  return {
    ...versionOf(backend),
    step: async () => {
      const { loss } = await train();
      for (let i = 0; i < cubesPerRound; i++) await gemm.run(inputs, [output]);
      return { loss };
    },
    end: async () => {
      for (const executable of loads) await executable.release();
      const [steps, cubes] = [await read("step"), await read("gemm")];
      await rm(folder, { recursive: true });
      const rounds = steps.map((step, i): ProductRound => {
        const own = cubes.slice(i * cubesPerRound, (i + 1) * cubesPerRound);
        const share = step.productUs / 1000 / step.ms;
        return { step: rate(step), gemm: median(own.map(rate)), share };
      });
      return { products: rounds };
    },
  };
}
