/** A GGUF file as a model. */
import type { Files } from "../host/host.ts";
import { type LoadedModel, loadModel } from "./folder.ts";
import { withGguf } from "./gguf-folder.ts";

/** A model with what its file says of text. */
export interface LoadedGguf extends LoadedModel {
  /** Contents of tokenizer.json and tokenizer_config.json, as `new Tokenizer(…, path)` takes them. */
  readonly tokenizer: { readonly tokenizer: string; readonly config: string } | undefined;
  /** A Jinja template, as `parseChatTemplate` takes it. */
  readonly chatTemplate: string | undefined;
}

/**
 * Loads a GGUF file: weights as float32, the config of the family, the tokenizer's files, the chat template.
 * `withGguf(files)` does the same for all that takes a model folder.
 * @throws FormatError when the file breaks its format or lacks a tensor
 * @throws UnsupportedError for architectures, tokenizers and types of numbers that are not known.
 */
export async function loadGguf(given: Files, path: string): Promise<LoadedGguf> {
  const files = withGguf(given);
  const loaded = await loadModel(files, path);
  const read = async (name: string): Promise<string | undefined> => {
    const file = files.join(path, name);
    return (await files.info(file)) ? files.readText(file) : undefined;
  };
  const [tokenizer, config] = [await read("tokenizer.json"), await read("tokenizer_config.json")];
  const template = config === undefined ? undefined : JSON.parse(config).chat_template;
  return {
    ...loaded,
    tokenizer: tokenizer === undefined || config === undefined ? undefined : { tokenizer, config },
    chatTemplate: template as string | undefined,
  };
}
