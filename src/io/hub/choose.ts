/** Which files of a repository a model or an adapter needs. */
import { FormatError, MissingError, OptionError, UnsupportedError } from "../../errors.ts";
import { isJsonObject, parseJson } from "../json.ts";
import { isSafePath } from "./id.ts";

/** Taken where they are there; folders below the first are for other programs (onnx/, original/). */
const small =
  /^(?:config|generation_config|adapter_config|special_tokens_map|added_tokens|preprocessor_config|processor_config|vocab|chat_template|tokenizer[\w.-]*)\.json$|^(?:merges|vocab)\.txt$|^tokenizer\.model$|^chat_template\.jinja$|^additional_chat_templates\/[\w.-]+\.jinja$/;
const adapterWeights = "adapter_model.safetensors";
const weights = "model.safetensors";
const index = "model.safetensors.index.json";
const pickle = /\.(?:bin|pt|pth|pkl|pickle|ckpt|h5|msgpack)$/i;
const ggufPart = /-(\d{5})-of-(\d{5})\.gguf$/i;
const maxShards = 10_000;

export interface Chosen {
  /** Paths in the repository, in order. */
  readonly paths: readonly string[];
  /** The file that was named, where one was. */
  readonly file?: string;
}

const listed = (paths: readonly string[]): string =>
  paths.slice(0, 5).join(", ") + (paths.length > 5 ? ` and ${paths.length - 5} more` : "");

/** The shards that an index names. */
function shardsOf(bytes: Uint8Array, where: string): readonly string[] {
  const json = parseJson(bytes, where);
  const map = isJsonObject(json) ? json["weight_map"] : undefined;
  const names = isJsonObject(map) ? new Set(Object.values(map)) : new Set();
  const isGood = [...names].every((name) => typeof name === "string" && isSafePath(name));
  if (!isGood || names.size === 0 || names.size > maxShards) {
    throw new FormatError(`${where}: weight_map must name the files of the weights.`);
  }
  return ([...names] as string[]).sort();
}

/** All parts of a split GGUF file, or the file alone. */
function ggufParts(file: string): readonly string[] {
  const match = ggufPart.exec(file);
  const count = Number(match?.[2]);
  if (!match || !(count >= 1 && count <= 1000)) return [file];
  const stem = file.slice(0, match.index);
  return Array.from(
    { length: count },
    (_, i) => `${stem}-${String(i + 1).padStart(5, "0")}-of-${match[2]}.gguf`,
  );
}

/**
 * Chooses among the files that a repository has.
 * @param asked paths that the user named; then those alone
 * @param readIndex gives the content of the index of a sharded model
 * @throws MissingError, UnsupportedError or OptionError where there is nothing that can be read.
 */
export async function chooseFiles(
  repo: string,
  has: ReadonlySet<string>,
  asked: readonly string[] | undefined,
  readIndex: (path: string) => Promise<Uint8Array>,
): Promise<Chosen> {
  if (asked !== undefined) {
    const bad = asked.find((path) => pickle.test(path));
    if (bad !== undefined) {
      throw new UnsupportedError(
        `hub: ${bad} of ${repo} is of a kind that may run code or that nothing here reads — choose .safetensors, .gguf or .json.`,
      );
    }
    return {
      paths: [...new Set(asked.flatMap(ggufParts))],
      ...(asked.length === 1 && { file: asked[0]! }),
    };
  }
  const paths = [...has].filter((path) => small.test(path)).sort();
  const isAdapter = has.has("adapter_config.json") && has.has(adapterWeights);
  if (isAdapter) paths.push(adapterWeights);
  if (has.has(weights)) return { paths: [...paths, weights] };
  if (has.has(index)) {
    const shards = shardsOf(await readIndex(index), `${repo}: ${index}`);
    return { paths: [...paths, index, ...shards] };
  }
  if (isAdapter) return { paths };
  const gguf = [...has].filter((path) => /\.gguf$/i.test(path)).sort();
  if (gguf.length > 0) {
    throw new OptionError(
      `hub: ${repo} holds GGUF files, name one — as ${repo}:${gguf[0]}; there are ${listed(gguf)}.`,
    );
  }
  const pickles = [...has].filter((path) => pickle.test(path)).sort();
  if (pickles.length > 0) {
    throw new UnsupportedError(
      `hub: ${repo} holds its weights only as ${listed(pickles)}, files that may run code and are never loaded — look for a revision with ${weights} (often @refs/pr/1), or convert it.`,
    );
  }
  throw new MissingError(
    `hub: ${repo} holds no ${weights}, no ${index} and no adapter — there are ${listed([...has].sort()) || "no files"}.`,
  );
}
