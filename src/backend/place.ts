/** Tensors that go to a device together. */
import { Tensor } from "../tensor/tensor.ts";
import type { AnyTensor, Device } from "./backend.ts";

/**
 * Copies on the device, by the same names; tensors of a type that the device does not keep stay as they
 * are, and all do without a device. When one fails, those before it are freed.
 * @throws StateError when the device has no room.
 */
export async function place(
  tensors: Readonly<Record<string, Tensor>>,
  device: Device | undefined,
): Promise<Record<string, AnyTensor>> {
  const placed: Record<string, AnyTensor> = {};
  try {
    for (const [name, tensor] of Object.entries(tensors)) {
      placed[name] = device?.keeps(tensor.dtype) ? await device.upload(tensor) : tensor;
    }
  } catch (error) {
    releaseAll(Object.values(placed));
    throw error;
  }
  return placed;
}

/** Frees those of the tensors that are on a device. */
export function releaseAll(tensors: Iterable<AnyTensor>): void {
  for (const tensor of tensors) if (!(tensor instanceof Tensor)) tensor.release();
}
