/** Adapter folders of every kind that is in the catalogue. */
import type { LoadedAdapter } from "../adapters/adapter.ts";
import { loadAdapter as loadKinds } from "../adapters/peft.ts";
import { type AdapterSet, loadAdapterSet as loadSet } from "../adapters/set.ts";
import type { Files } from "../host/host.ts";
import type { PretrainedModel } from "../models/model.ts";
import { adapterKinds } from "./registry.ts";

/**
 * Reads an adapter's folder for a model, strictly: every tensor is applied, or named in an error.
 * @throws MissingError when the folder is no adapter; FormatError when its tensors do not fit;
 * UnsupportedError when they are in a pickle, or of a kind that is not there.
 */
export function loadAdapter(
  files: Files,
  path: string,
  model: PretrainedModel,
): Promise<LoadedAdapter> {
  return loadKinds(files, path, model, adapterKinds());
}

/**
 * Reads the adapters in the folders below a folder, of whatever kinds, none of them active.
 * @throws as `loadAdapter`; OptionError when there is none.
 */
export function loadAdapterSet(
  files: Files,
  path: string,
  model: PretrainedModel,
): Promise<AdapterSet> {
  return loadSet(files, path, model, adapterKinds());
}
