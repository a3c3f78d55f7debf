/**
 * What we rely on in onnxruntime-node 1.30.0 and could not rely on in another version without
 * looking again. Section 2 of the design has the measurements behind it.
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { beforeAll, describe, expect, test } from "vitest";
import { runScript } from "../../../test/support/child.ts";
import { StateError } from "../../errors.ts";
import { encodeOnnx, type OnnxGraph, type OnnxValue } from "../../io/onnx.ts";
import { add, mul, tanh } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { dot } from "../../ir/linear.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { compile, spec, trace } from "../compile.ts";
import { nodeOrt } from "./node.ts";
import { OrtBackend, type OrtSession, type OrtTensor } from "./ort.ts";

let backend: OrtBackend;

beforeAll(async () => {
  backend = await nodeOrt({ threads: 1 });
});

const vector = (name: string, size: number, type: OnnxValue["type"] = "float32"): OnnxValue => ({
  name,
  type,
  shape: [size],
});

function graphOf(
  nodes: readonly { op: string; inputs: string[]; output: string; to?: number }[],
  inputs: readonly OnnxValue[],
  outputs: readonly OnnxValue[],
): OnnxGraph {
  return {
    name: "contract",
    nodes: nodes.map(({ op, inputs: from, output, to }) => ({
      op,
      domain: "",
      inputs: from,
      outputs: [output],
      attributes: to === undefined ? {} : { to: { int: to } },
    })),
    initializers: [],
    inputs,
    outputs,
  };
}

/** A session of the binding itself, below our checks. */
function raw(graph: OnnxGraph): Promise<OrtSession> {
  return backend.binding.session(encodeOnnx(graph, { "": 21 }), {
    threads: 1,
  });
}

/** y = a + b on `size` numbers. */
function adder(size: number): Promise<OrtSession> {
  return raw(
    graphOf(
      [{ op: "Add", inputs: ["a", "b"], output: "y" }],
      [vector("a", size), vector("b", size)],
      [vector("y", size)],
    ),
  );
}

const native = (data: Float32Array): OrtTensor =>
  backend.binding.tensor("float32", data, [data.length]);

describe("the version", () => {
  test("is pinned exactly, and is the one that was measured", () => {
    const require = createRequire(import.meta.url);
    const own = JSON.parse(
      readFileSync(new URL("../../../package.json", import.meta.url), "utf8"),
    ) as { dependencies: Record<string, string> };
    for (const name of ["onnxruntime-node", "onnxruntime-web"]) {
      expect(own.dependencies[name]).toBe("1.30.0");
      const path = require.resolve(name).replace(new RegExp(`(.*[\\\\/]${name})[\\\\/].*`), "$1");
      const installed = JSON.parse(readFileSync(`${path}/package.json`, "utf8")) as {
        version: string;
      };
      expect(installed.version).toBe(backend.binding.version);
    }
  });
});

describe("the native binding", () => {
  test("reads inputs and writes outputs in WebAssembly memory, in place", async () => {
    const memory = new WebAssembly.Memory({ initial: 1 });
    const a = new Float32Array(memory.buffer, 0, 4);
    const b = new Float32Array(memory.buffer, 64, 4);
    const y = new Float32Array(memory.buffer, 128, 4);
    a.set([1, 2, 3, 4]);
    b.set([10, 20, 30, 40]);
    const session = await adder(4);
    const feeds = { a: native(a), b: native(b) };
    session.runSync!(feeds, { y: native(y) });
    expect([...y]).toEqual([11, 22, 33, 44]);
    // The wrapped tensor is a view: a new number is seen without wrapping again.
    a[0] = 5;
    session.runSync!(feeds, { y: native(y) });
    expect(y[0]).toBe(15);
    await session.release();
  });

  test("takes views that start within a buffer", async () => {
    const buffer = new ArrayBuffer(64);
    const [a, y] = [new Float32Array(buffer, 4, 3), new Float32Array(buffer, 36, 3)];
    a.set([1, 2, 3]);
    const session = await adder(3);
    session.runSync!({ a: native(a), b: native(Float32Array.of(1, 1, 1)) }, { y: native(y) });
    expect([...y]).toEqual([2, 3, 4]);
    expect([...new Float32Array(buffer, 0, 1)]).toEqual([0]);
    await session.release();
  });

  test("returns a copy of what it wrote, which is why the result is ignored", async () => {
    const session = await adder(2);
    const y = new Float32Array(2);
    const feeds = { a: native(Float32Array.of(1, 2)), b: native(Float32Array.of(3, 4)) };
    const result = session.runSync!(feeds, { y: native(y) })!;
    const copy = result["y"]!.data as Float32Array;
    expect([...copy]).toEqual([4, 6]);
    expect(copy.buffer).not.toBe(y.buffer);
    copy[0] = 100;
    expect(y[0]).toBe(4);
    await session.release();
  });

  test("keeps the results to itself when the first output has a type it cannot copy", async () => {
    const size = 4;
    const [a, y] = [Float32Array.of(1, 2, 3, 4), new Float32Array(size)];
    const graph = graphOf(
      [{ op: "Neg", inputs: ["a"], output: "y" }],
      [vector("a", size)],
      [{ name: "quiet", type: "bfloat16", shape: [] }, vector("y", size)],
    );
    const quiet = { name: "quiet", type: "bfloat16", dims: [], data: new Uint8Array(2) } as const;
    const session = await raw({ ...graph, initializers: [quiet] });
    expect(() => session.runSync!({ a: native(a) }, { quiet: null, y: native(y) })).toThrow(
      /^Tensor type \(16\) is not supported\.$/,
    );
    expect([...y]).toEqual([-1, -2, -3, -4]);
    await session.release();
  });

  test("refuses shared memory, or in newer Nodes reads it: none is ever given", async () => {
    const session = await adder(2);
    const shared = new Float32Array(new SharedArrayBuffer(8)).fill(1);
    const run = () =>
      session.runSync!({ a: native(shared), b: native(new Float32Array(2).fill(2)) }, { y: null });
    if (Number(process.versions.node.split(".")[0]) < 22) expect(run).toThrow("Invalid argument");
    else expect([...(run()["y"]!.data as Float32Array)]).toEqual([3, 3]);
    await session.release();
  });

  test("does not take 4-bit numbers, bfloat16 or a wrong shape as inputs", async () => {
    const refused = async (
      type: "uint4" | "bfloat16",
      data: Uint8Array | Uint16Array,
    ): Promise<void> => {
      const session = await raw(
        graphOf(
          [{ op: "Cast", inputs: ["a"], output: "y", to: 1 }],
          [vector("a", 4, type)],
          [vector("y", 4)],
        ),
      );
      const a = { type, data, dims: [4], location: "cpu" };
      expect(() => session.runSync!({ a }, { y: null })).toThrow(
        `Tensor.type is not supported: ${type}`,
      );
      await session.release();
    };
    await refused("uint4", new Uint8Array(2));
    await refused("bfloat16", new Uint16Array(4));
    const session = await adder(2);
    const a = native(new Float32Array(3));
    expect(() => session.runSync!({ a, b: a }, { y: null })).toThrow(/invalid dimensions/);
    await session.release();
  });

  test("gives the same numbers from run and runSync", async () => {
    const session = await adder(3);
    const feeds = {
      a: native(Float32Array.of(0.1, 0.2, 0.3)),
      b: native(Float32Array.of(1, 2, 3)),
    };
    const [one, two] = [new Float32Array(3), new Float32Array(3)];
    session.runSync!(feeds, { y: native(one) });
    await session.run(feeds, { y: native(two) });
    expect(two).toEqual(one);
    await session.release();
  });
});

const layer = (x: Value, w: Value): Value => tanh(dot(x, w));

describe("an executable", () => {
  test("writes to the given tensors and returns them", async () => {
    const { program } = trace(layer, [spec([2, 3]), spec([3, 2])]);
    const executable = await backend.load(program);
    const inputs = [Tensor.from([1, 2, 3, 4, 5, 6], [2, 3]), Tensor.zeros([3, 2], "float32")];
    const into = Tensor.from([9, 9, 9, 9], [2, 2]);
    const [result] = await executable.run(inputs, [into]);
    expect(result).toBe(into);
    expect([...into.data]).toEqual([0, 0, 0, 0]);
    await executable.release();
  });

  test("refuses an output that shares memory with an input, and takes neighbours", async () => {
    const { program } = trace((a: Value, b: Value) => add(a, b), [spec([4]), spec([4])]);
    const executable = await backend.load(program);
    const buffer = new ArrayBuffer(64);
    const at = (offset: number): Tensor =>
      new Tensor("float32", [4], new Float32Array(buffer, offset, 4));
    const inputs = [at(0), at(16)];
    const refused =
      /^run: output "result" shares memory with input "[01]" — give it memory of its own\.$/;
    for (const offset of [0, 4, 28]) {
      await expect(executable.run(inputs, [at(offset)])).rejects.toThrow(refused);
      expect(() => executable.runSync(inputs, [at(offset)])).toThrow(StateError);
    }
    await expect(executable.run(inputs, [at(32)])).resolves.toHaveLength(1);
    await executable.release();
  });

  test("gives large outputs without a copy, and other errors as they are", async () => {
    const size = 2 ** 16;
    const { program } = trace(
      (a: Value, i: Value) => gather(a, i),
      [spec([size]), spec([size], "int32")],
    );
    const executable = await backend.load(program);
    expect(executable.lowered.quiet).toBeDefined();
    const a = Tensor.from(Float32Array.from({ length: size }, (_, i) => i));
    const indices = Tensor.from(new Int32Array(size).fill(7), [size], "int32");
    const into = Tensor.zeros([size], "float32");
    expect(executable.runSync([a, indices], [into])[0]).toBe(into);
    expect((await executable.run([a, indices]))[0]!.data[size - 1]).toBe(7);
    indices.data[3] = size;
    expect(() => executable.runSync([a, indices])).toThrow(/indices element out of data bounds/);
    await executable.release();
  });

  test("refuses two outputs in the same memory", async () => {
    const { program } = trace((a: Value) => [add(a, 1), mul(a, 2)], [spec([2])]);
    const executable = await backend.load(program);
    const same = Tensor.zeros([2], "float32");
    await expect(executable.run([Tensor.from([1, 2])], [same, same.reshape([2])])).rejects.toThrow(
      'run: output "1" shares memory with output "0"',
    );
    await executable.release();
  });

  test("refuses inputs that do not fit, naming them", async () => {
    const { program } = trace(layer, [spec([2, 3]), spec([3, 2])]);
    const executable = await backend.load(program);
    const x = Tensor.zeros([2, 3], "float32");
    await expect(executable.run([x, x])).rejects.toThrow(
      'run: input "1" must have shape (3, 2), got (2, 3).',
    );
    await expect(executable.run([x])).rejects.toThrow("run: needs 2 inputs, got 1.");
    const w = Tensor.zeros([3, 2], "float32");
    await expect(executable.run([x, w], [Tensor.zeros([2], "float32")])).rejects.toThrow(
      'run: output "result" is float32 (2, 2), the tensor to write to float32 (2,).',
    );
    await executable.release();
  });

  test("agrees between run and runSync", async () => {
    const compiled = await compile<Tensor>(layer, [spec([4, 5]), spec([5, 3])], { backend });
    const x = Tensor.from(
      Array.from({ length: 20 }, (_, i) => Math.sin(i)),
      [4, 5],
    );
    const w = Tensor.from(
      Array.from({ length: 15 }, (_, i) => Math.cos(i)),
      [5, 3],
    );
    const one = await compiled.run(x, w);
    expect(compiled.runSync(x, w).data).toEqual(one.data);
    await compiled.release();
  });

  test("runs one at a time", async () => {
    const { program } = trace((a: Value) => add(a, 1), [spec([2])]);
    const executable = await backend.load(program);
    const x = Tensor.from([1, 2]);
    const first = executable.run([x]);
    await expect(executable.run([x])).rejects.toThrow(StateError);
    expect(() => executable.runSync([x])).toThrow("run: still running — await the last run first.");
    await expect(executable.release()).rejects.toThrow(StateError);
    expect([...(await first)[0]!.data]).toEqual([2, 3]);
    await executable.release();
  });

  test("does not run after its release, which may be repeated", async () => {
    const { program } = trace((a: Value) => add(a, 1), [spec([2])]);
    const executable = await backend.load(program);
    await executable.release();
    await executable.release();
    const x = Tensor.from([1, 2]);
    await expect(executable.run([x])).rejects.toThrow(
      "run: the executable was released — load it again.",
    );
    expect(() => executable.runSync([x])).toThrow(StateError);
  });
});

describe("a session that may be used a few times only", () => {
  const square = (value: number): Tensor =>
    new Tensor("float32", [128, 128], new Float32Array(128 * 128).fill(value));

  /** A backend that tells which sessions were loaded without an arena. */
  function watched(): { own: OrtBackend; asked: (boolean | undefined)[] } {
    const asked: (boolean | undefined)[] = [];
    const { binding } = backend;
    const own = new OrtBackend({
      ...binding,
      session: (model, options) => {
        asked.push(options.withoutArena);
        return binding.session(model, options);
      },
    });
    return { own, asked };
  }

  test("gets an arena after 64 runs, and goes on with the same numbers", async () => {
    const { own, asked } = watched();
    const { program } = trace((a: Value, b: Value) => tanh(dot(a, b)), [square(0), square(0)]);
    const executable = await own.load(program);
    for (let i = 0; i < 66; i++) {
      expect(asked).toEqual(i <= 64 ? [true] : [true, false]);
      const [y] = await executable.run([square(i / 64), square(1 / 64)]);
      // 128 · i / 64²
      expect(y!.numbers()[5]).toBeCloseTo(Math.tanh(i / 32), 5);
    }
    await executable.release();
    expect(asked).toEqual([true, false]);
  });

  test.each([
    ["it has little to do", [spec([2, 2]), spec([2, 2])], false],
    ["a size is open", [spec(["n", 128]), square(0)], false],
    ["it holds weights", [square(0), square(0)], true],
  ])("has an arena at once where %s", async (_, inputs, holds) => {
    const { own, asked } = watched();
    const { program } = trace(((a: Value, b: Value) => dot(a, b)) as never, inputs as never);
    const frozen = new Map([[program.inputs[1]!, square(1)]]);
    const executable = await own.load(program, holds ? { frozen } : {});
    await executable.release();
    expect(asked).toEqual([false]);
  });

  test("has an arena at once where its blocks are large", async () => {
    const { own, asked } = watched();
    const large = (a: Value, b: Value): Value => tanh(add(mul(a, a), mul(b, b)));
    const { program } = trace(large, [spec([2100, 2100]), spec([2100, 2100])]);
    await (await own.load(program)).release();
    expect(asked).toEqual([false]);
  });
});

test("memory of 60 released sessions is given back, all but a fifth", async () => {
  // 60 sessions of 8 MB would keep 480 MB. A process of its own, since other tests share this one;
  // and with an allocator that returns what is freed, which glibc puts off as it sees fit.
  const { stdout } = await runScript("session-memory.ts", {
    args: ["60"],
    env: { MALLOC_MMAP_THRESHOLD_: "131072", MALLOC_ARENA_MAX: "1" },
  });
  expect(Number(stdout)).toBeLessThan(96e6);
});
