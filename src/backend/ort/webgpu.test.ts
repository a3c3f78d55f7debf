/** Node's WebGPU provider, on the software driver that Chromium brings along. */
import { describe, expect, test } from "vitest";
import { runScript } from "../../../test/support/child.ts";
import { swiftShader } from "../../../test/support/swiftshader.ts";
import { trainTinyGpt } from "../../../test/support/tiny-gpt.ts";
import { nodeOrt } from "./node.ts";

const env = swiftShader();
const isRequired = process.env["PLASTICITY_REQUIRE_WEBGPU"] === "1";

test.runIf(isRequired)("Chromium is there, as PLASTICITY_REQUIRE_WEBGPU=1 asks", () => {
  expect(env, "no vk_swiftshader_icd.json — install chromium and libvulkan1").toBeDefined();
});

/** Cases that ONNX Runtime 1.30.0 cannot do, or not exactly, on WebGPU. */
const known: Readonly<Record<string, RegExp>> = {
  // Shaders may treat NaN as they like, and may be this inexact on large angles.
  ...Object.fromEntries(
    ["exp", "log", "relu", "sigmoid", "softplus"].map((op) => [
      `${op}: special numbers`,
      /expected NaN/,
    ]),
  ),
  ...Object.fromEntries(
    ["sin", "cos"].flatMap((op) =>
      ["float32", "special numbers"].map((name) => [`${op}: ${name}`, /off by 0\.000/]),
    ),
  ),
  // The software driver lacks float16.
  ...Object.fromEntries(
    ["float32", "int32", "bool", "uint8", "float16"].map((from) => [
      `cast: from ${from}`,
      /requires f16/,
    ]),
  ),
  // Nothing to reduce, or to convolve.
  ...Object.fromEntries(
    ["reduceMax", "reduceMin"].flatMap((op) =>
      ["float32", "int32", "an empty axis"].map((name) => [`${op}: ${name}`, /reduction_ops/]),
    ),
  ),
  "softmax: float32, every axis": /Invalid dispatch group size/,
  "conv: no examples": /Invalid dispatch group size/,
  "convTranspose: no examples": /Invalid dispatch group size/,
  "convTranspose: three spatial axes": /Only Conv2d or Conv1d are supported/,
};

describe.skipIf(!env)(env ? "on WebGPU" : "on WebGPU (skipped: no Chromium, no driver)", () => {
  test("a GPT-2 trains to the CPU's losses, and every node runs on the device", async () => {
    const steps = 3;
    const { stdout } = await runScript("webgpu.ts", { args: [String(steps)], env: env! });
    const { losses, placement } = JSON.parse(stdout) as {
      losses: number[];
      placement: Record<string, Record<string, number>>;
    };
    const expected = await trainTinyGpt(await nodeOrt(), steps);
    expect(losses).toHaveLength(steps);
    expected.forEach((loss, i) => {
      expect(Math.abs(losses[i]! - loss)).toBeLessThan(1e-4);
    });
    expect(losses[2]!).toBeLessThan(losses[0]! - 0.1);
    expect(placement["CPUExecutionProvider"] ?? {}).toEqual({});
    const device = placement["WebGpuExecutionProvider"]!;
    expect(device["Gemm"]).toBeGreaterThan(20);
    expect(device["Softmax"]).toBe(2);
  });

  // Some minutes of small shaders where the machine is busy.
  test.runIf(isRequired)(
    "the operators give the reference's results, with exceptions known by name",
    async () => {
      const { stdout } = await runScript("webgpu-operators.ts", { env: env!, timeout: 580_000 });
      const { passed, failures } = JSON.parse(stdout) as {
        passed: number;
        failures: Record<string, string>;
      };
      expect(passed).toBeGreaterThan(150);
      expect(Object.keys(failures).sort()).toEqual(Object.keys(known).sort());
      for (const [name, message] of Object.entries(failures)) expect(message).toMatch(known[name]!);
    },
    600_000,
  );
});

test("a machine without a driver is told so", async () => {
  const none = { VK_ICD_FILENAMES: "/nowhere.json", VK_DRIVER_FILES: "/nowhere.json" };
  await expect(runScript("webgpu.ts", { args: ["1"], env: none })).rejects.toThrow(
    'engine: this machine has no WebGPU adapter, or no driver for it — use provider "cpu".',
  );
});
