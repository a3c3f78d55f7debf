/** Tensors and training that stay on WebGPU, in a page of headless Chromium. */
import { beforeAll, describe, expect, it } from "vitest";
import * as library from "../src/index.ts";
import { chromiumPath, runInPage, withoutChromium } from "./support/chromium.ts";
import {
  type DeviceDecoding,
  type DeviceRules,
  type DeviceRun,
  decodeOnDevice,
  trainOnDevice,
} from "./support/page/device.js";

describe.skipIf(!chromiumPath)(`on WebGPU in a page${withoutChromium}`, () => {
  let page: { rules: DeviceRules; adapter: DeviceRun; full: DeviceRun; decoded: DeviceDecoding };
  beforeAll(async () => {
    page = await runInPage("device-page.js", {}, { webgpu: true, timeout: 110_000 });
  }, 120_000);

  it("tensors are kept, read and freed once", () => {
    const { numbers, results, held, left } = page.rules;
    expect(numbers).toEqual([[0.5, 1.5, 2.5, 3.5, 4.5], [0, 0, 0, 0, 0], [1, 0, 1], []]);
    // x + x stays there; x · x comes to the host.
    expect(results).toEqual([true, [1, 3, 5, 7, 9], true, [0.25, 2.25, 6.25, 12.25, 20.25]]);
    // Two of 20 bytes and one of 3, rounded up to 16.
    expect(held).toEqual([4, 80]);
    expect(left).toEqual([0, 0]);
  });

  it("what cannot be is said", () => {
    const [overInput, twice, type, large, ...released] = page.rules.refusals;
    expect(overInput).toBe(
      'run: output "0" shares memory with input "1" — give it memory of its own.',
    );
    expect(twice).toBe(
      'run: output "1" shares memory with output "0" — give it memory of its own.',
    );
    expect(type).toBe(
      "device: WebGPU buffers hold float32, float16, int32, int64, uint8, bool, got float64.",
    );
    expect(large).toMatch(
      /^device: a tensor of shape \(1048576, 1048576\) takes 4398046511104 bytes, a buffer of this device holds \d+ — /,
    );
    expect(released).toEqual(Array(3).fill("device: the tensor of shape (5,) was released."));
  });

  it("a decoder draws Node's tokens from weights that stay there", async () => {
    const { made, held, left } = page.decoded;
    const expected = await decodeOnDevice(library, await library.nodeOrt({ threads: 1 }));
    expect(made).toEqual(expected.made);
    expect(made.map(({ length }) => length)).toEqual([6, 6]);
    // One layer of GPT-2 has 12 parameters, beside two embeddings and the last norm's two.
    expect([held, left]).toEqual([16, 0]);
  });

  it.each(["adapter", "full"] as const)(
    "five steps of AdamW (%s) give Node's numbers, and only batch and scalars cross",
    async (name) => {
      const run = page[name];
      const expected = await trainOnDevice(library, await library.nodeOrt({ threads: 1 }), {
        isFull: name === "full",
      });
      const near = (actual: readonly number[], wanted: readonly number[], by: number): void => {
        expect(actual).toHaveLength(wanted.length);
        actual.forEach((x, i) => {
          expect(Math.abs(x - wanted[i]!)).toBeLessThan(by * Math.max(1, Math.abs(wanted[i]!)));
        });
      };
      near(run.losses, expected.losses, 1e-5);
      expect(run.losses[3]!).toBeLessThan(run.losses[0]! - 0.01);
      near(run.norms, expected.norms, 1e-5);
      near([run.loss], [expected.loss], 1e-5);
      near(run.params.flat(), expected.params.flat(), 1e-4);
      near(run.state.flat(), expected.state.flat(), 1e-4);
      // Three arrays of 32 numbers and their total for each part, three numbers of AdamW; a loss for each
      // part, and the norm.
      const one = { up: (3 * 32 + 1) * 4 + 12, down: 8 };
      const two = { up: 2 * (3 * 32 + 1) * 4 + 12, down: 12 };
      expect(run.crossings).toEqual([one, one, one, one, two]);
      expect([run.isApplied, run.isKept, run.steps]).toEqual([false, true, 5]);
      expect(run.held!.tensors).toBe(run.start!.tensors);
      expect(run.held!.bytes).toBe(run.start!.bytes);
      expect(run.end).toMatchObject({ tensors: 0, bytes: 0 });
    },
  );
});
