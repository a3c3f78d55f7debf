import { expect, it } from "vitest";
import { withHostDevice } from "../../test/support/host-device.ts";
import { StateError, UnsupportedError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { Tensor } from "../tensor/tensor.ts";
import { runAnywhere } from "./backend.ts";
import { spec, trace } from "./compile.ts";
import { nodeOrt } from "./ort/node.ts";
import { place, releaseAll } from "./place.ts";
import { reference } from "./reference/reference.ts";

const { program } = trace((a: Value, b: Value) => add(a, b), [spec([2]), spec([2])]);
const tensors = {
  a: Tensor.from([1, 2]),
  b: Tensor.from([3, 4]),
  half: Tensor.from([1], [1], "float16"),
};

it("tensors go to a device by name, those of other types stay, and all come to be freed", async () => {
  const { device, load } = withHostDevice(reference());
  const placed = await place(tensors, device);
  expect(Object.keys(placed)).toEqual(["a", "b", "half"]);
  expect(placed["half"]).toBe(tensors.half);
  expect(device.stats).toMatchObject({ tensors: 2, bytes: 16, uploadedBytes: 16 });
  const executable = await load(program);
  const into = await device.allocate([2], "float32");
  expect(await runAnywhere(executable, [placed["a"]!, placed["b"]!], [into])).toEqual([into]);
  expect([...(await into.read()).data]).toEqual([4, 6]);
  const [here] = await runAnywhere(executable, [placed["a"]!, tensors.b]);
  expect([...(here as Tensor).data]).toEqual([4, 6]);
  releaseAll([...Object.values(placed), into]);
  expect(device.stats).toMatchObject({ tensors: 0, bytes: 0 });
  expect(() => into.release()).toThrow(StateError);
});

it("without a device all stay, and tensors of one are refused", async () => {
  expect(await place(tensors, undefined)).toEqual(tensors);
  const placed = await place(tensors, withHostDevice(reference()).device);
  const inputs = [placed["a"]!, placed["b"]!];
  await expect(runAnywhere(await reference().load(program), inputs)).rejects.toThrow(
    new StateError("run: a tensor is on a device, and this backend has none — read it first."),
  );
  const native = await (await nodeOrt({ threads: 1 })).load(program);
  await expect(runAnywhere(native, inputs)).rejects.toThrow(
    new UnsupportedError(
      "runOnDevice: onnxruntime-node cpu keeps no tensors on a device — use run.",
    ),
  );
  expect([...((await runAnywhere(native, [tensors.a, tensors.b]))[0] as Tensor).data]).toEqual([
    4, 6,
  ]);
  await native.release();
});
