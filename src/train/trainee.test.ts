import { expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { loadModel } from "../models/folder.ts";
import { quantizedAsRead, quantizeModel } from "./trainee.ts";

it("quantises a model while it is read to the same bits as afterwards", async () => {
  const { files } = nodeHost();
  const path = new URL("../../models/builtin", import.meta.url).pathname;
  const options = { bits: 4, blockSize: 32 } as const;
  const whole = await loadModel(files, path);
  const { model, params } = await loadModel(files, path, { keep: quantizedAsRead(options) });
  // No float weight of a layer is kept.
  for (const layer of model.targets.keys()) expect(params[`${layer}.weight`]).toBeUndefined();
  const wanted = quantizeModel(whole.model, whole.params, options).params;
  const found = quantizeModel(model, params, options).params;
  expect(Object.keys(found).sort()).toEqual(Object.keys(wanted).sort());
  for (const [name, tensor] of Object.entries(wanted)) {
    const bytes = ({ data }: typeof tensor): Buffer =>
      Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    expect([name, found[name]!.shape]).toEqual([name, tensor.shape]);
    expect([name, bytes(found[name]!).equals(bytes(tensor))]).toEqual([name, true]);
  }
});
