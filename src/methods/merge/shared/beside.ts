/** The files beside the weights: copied from the model whose config is written, the tokenizer perhaps from another. */
import type { Files } from "../../../host/host.ts";

/** Files that hold weights in some form, which would not be those of the merge; and what would add an adapter. */
const weights =
  /\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|onnx_data(_\d+)?|tflite)$|\.index\.json$|^adapter_config\.json$/i;

const tokenizer =
  /^(tokenizer[\w.-]*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.\w+|[\w.-]+\.model|[\w.-]+\.tiktoken)$/;

/** Written anew: config.json with the weights' type, README.md with what was merged. */
const anew = ["config.json", "README.md"];

const nameOf = (path: string): string => path.split(/[\\/]/).at(-1)!;

async function copy(files: Files, from: string, to: string): Promise<void> {
  const writer = await files.create(to);
  try {
    for await (const chunk of files.stream(from)) await writer.write(chunk);
    await writer.commit();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/**
 * Copies files but no weights, folders or config.json.
 * @param from the folder; @param tokens where files of the tokenizer are taken from
 * @returns names of what was written, and of what was left behind
 */
export async function copyFiles(
  files: Files,
  from: string,
  tokens: string,
  to: string,
): Promise<{ readonly copied: readonly string[]; readonly leftOut: readonly string[] }> {
  const copied: string[] = [];
  const leftOut: string[] = [];
  for (const { path, isDirectory } of await files.list(from)) {
    const name = nameOf(path);
    if (anew.includes(name) || (tokens !== from && tokenizer.test(name))) continue;
    if (/^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/.test(name)) continue;
    if (isDirectory || weights.test(name) || /\.tmp-\d+/.test(name)) {
      leftOut.push(isDirectory ? `${name}/` : name);
      continue;
    }
    await copy(files, path, files.join(to, name));
    copied.push(name);
  }
  if (tokens === from) return { copied, leftOut };
  for (const { path, isDirectory } of await files.list(tokens)) {
    const name = nameOf(path);
    if (isDirectory || !tokenizer.test(name)) continue;
    await copy(files, path, files.join(to, name));
    copied.push(name);
  }
  return { copied, leftOut };
}
