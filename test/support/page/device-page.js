import * as library from "plasticity";
import { decodeOnDevice, deviceRules, trainOnDevice } from "./device.js";

export default async () => {
  const backend = await library.webOrt({ provider: "webgpu" });
  const rules = await deviceRules(library, backend);
  const adapter = await trainOnDevice(library, backend, { isFull: false });
  const full = await trainOnDevice(library, backend, { isFull: true });
  const decoded = await decodeOnDevice(library, backend);
  return { rules, adapter, full, decoded };
};
