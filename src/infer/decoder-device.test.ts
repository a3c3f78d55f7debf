import { expect, it } from "vitest";
import { withHostDevice } from "../../test/support/host-device.ts";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { StateError } from "../errors.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Rng } from "../tensor/rng.ts";
import { Decoder } from "./decoder.ts";

const engine = await nodeOrt({ threads: 1 });
const model = new Gpt2({ vocabSize: 31, dModel: 16, nLayers: 2, nHeads: 4, maxPositions: 64 });
const { params } = model.init(new Rng(1));
const adapter = lora(model, { rank: 2 });
const own = adapter.init(new Rng(2));
for (const tensor of Object.values(own)) {
  (tensor.data as Float32Array).set(new Rng(3).normals(tensor.size, 0.5));
}
const options = { adapter: { adapter, params: own } };
const bytes = Object.values(params).reduce((n, tensor) => n + tensor.data.byteLength, 0);
const prompts = [Int32Array.of(3, 1, 4), Int32Array.of(1, 5, 9, 2, 6)];

it("with a device makes the same tokens, and base weights go there once", async () => {
  const loads = { open: 0 };
  const backend = withHostDevice(engine, loads);
  const [here, there] = [
    new Decoder(model, params, engine, options),
    new Decoder(model, params, backend, options),
  ];
  const settings = { maxNewTokens: 20, temperature: 0.8, seed: 4 };
  const expected = await here.generate(prompts, settings);
  expect(await there.generate(prompts, settings)).toEqual(expected);
  expect(backend.device.stats).toMatchObject({ tensors: Object.keys(params).length, bytes });
  const long = [Int32Array.from({ length: 20 }, (_, i) => i)];
  expect(await there.generate(long, settings)).toEqual(await here.generate(long, settings));
  expect(loads.open).toBe(3);
  expect(backend.device.stats.bytes).toBe(bytes);
  await here.release();
  await there.release();
  expect(backend.device.stats).toMatchObject({ tensors: 0, bytes: 0 });
  expect(loads.open).toBe(0);
});

it("can be released when there was no room for the weights", async () => {
  const backend = withHostDevice(engine);
  const upload = (): Promise<never> => Promise.reject(new StateError("device: no room."));
  const { stats, keeps, allocate } = backend.device;
  const small = { ...backend, device: { stats, keeps, allocate, upload } };
  const decoder = new Decoder(model, params, small, options);
  await expect(decoder.generate(prompts)).rejects.toThrow("device: no room.");
  await decoder.release();
});
