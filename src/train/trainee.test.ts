import { expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { loadModel } from "../models/folder.ts";
import { quantizedAsRead, quantizeModel } from "./trainee.ts";

it("quantises a model while it is read to the same bits as afterwards", async () => {
  const { files } = nodeHost();
  const path = new URL("../../test/parity/hf-llama", import.meta.url).pathname;
  const options = { bits: 4, blockSize: 16 } as const;
  const whole = await loadModel(files, path);
  const { model, params } = await loadModel(files, path, { keep: quantizedAsRead(options) });
  // No float weight of a layer is kept.
  for (const layer of model.targets.keys()) expect(params[`${layer}.weight`]).toBeUndefined();
  const wanted = quantizeModel(whole.model, whole.params, options).params;
  const found = quantizeModel(model, params, options).params;
  expect(Object.keys(found).sort()).toEqual(Object.keys(wanted).sort());
  for (const [name, tensor] of Object.entries(wanted)) {
    expect([name, found[name]!.shape, [...found[name]!.data]]).toEqual([
      name,
      tensor.shape,
      [...tensor.data],
    ]);
  }
});
