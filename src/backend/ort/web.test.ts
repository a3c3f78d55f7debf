import { describe, expect, test } from "vitest";
import { runScript } from "../../../test/support/child.ts";
import { trainMlp } from "../../../test/support/mlp.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import { StateError, UnsupportedError } from "../../errors.ts";
import { add } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { spec, trace } from "../compile.ts";
import { reference } from "../reference/reference.ts";
import { defaultBackend } from "./default.ts";
import { nodeOrt } from "./node.ts";
import { webOrt } from "./web.ts";

function expectClose(actual: readonly number[], expected: readonly number[]): void {
  expect(actual).toHaveLength(expected.length);
  expected.forEach((value, i) => {
    expect(Math.abs(actual[i]! - value)).toBeLessThan(tolerance.float32);
  });
}

describe("WebAssembly in Node", () => {
  test("trains a tiny network as the native engine and the reference do", async () => {
    const steps = 8;
    const [wasm, native, judge] = [
      await trainMlp(await webOrt(), steps),
      await trainMlp(await nodeOrt(), steps),
      await trainMlp(reference(), steps),
    ];
    expectClose(wasm, native);
    expectClose(native, judge);
    expect(wasm.at(-1)!).toBeLessThan(wasm[0]! - 0.1);
  });

  test("copies results into the given tensors, and checks as the native engine does", async () => {
    const { program } = trace((a: Value) => add(a, 1), [spec(["rows", 2])]);
    const executable = await (await webOrt()).load(program);
    const x = Tensor.from([1, 2, 3, 4], [2, 2]);
    const into = Tensor.zeros([2, 2], "float32");
    expect(await executable.run([x], [into])).toEqual([into]);
    expect([...into.data]).toEqual([2, 3, 4, 5]);
    const [grown] = await executable.run([Tensor.from([7, 8], [1, 2])]);
    expect([grown!.shape, ...grown!.data]).toEqual([[1, 2], 8, 9]);
    await expect(executable.run([x], [x])).rejects.toThrow(StateError);
    expect(() => executable.runSync([x])).toThrow(
      "runSync: onnxruntime-web wasm only runs async — use run.",
    );
    const first = executable.run([x]);
    await expect(executable.run([x])).rejects.toThrow("still running");
    await first;
    await executable.release();
    await expect(executable.run([x])).rejects.toThrow("the executable was released");
  });

  test("has no WebGPU", async () => {
    await expect(webOrt({ provider: "webgpu" })).rejects.toThrow(UnsupportedError);
  });
});

describe("the default engine", () => {
  test("is the native one where there is a binary, without a warning", async () => {
    const warnings: string[] = [];
    const backend = await defaultBackend({ warn: (message) => warnings.push(message) });
    expect(backend.name).toBe("onnxruntime-node cpu");
    expect(warnings).toEqual([]);
  });

  test("is WebAssembly elsewhere, and says so", async () => {
    const { stdout } = await runScript("no-native.ts");
    const found = JSON.parse(stdout) as Record<string, never>;
    expect(found["name"]).toBe("onnxruntime-web wasm");
    expect(found["warnings"]).toEqual([
      "onnxruntime-node has no binary for this machine: running as WebAssembly, several times slower.",
    ]);
    expectClose(found["losses"]!, await trainMlp(await nodeOrt(), 3));
    expect(found["refused"]).toMatch(/^engine: onnxruntime-node has no binary for linux\/mips/);
  });
});
