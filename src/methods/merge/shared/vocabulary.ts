/** Tokenizers of merged models: a row of the embedding must mean the same token in all of them. */
import { FormatError } from "../../../errors.ts";
import type { Files } from "../../../host/host.ts";
import { isJsonObject, type JsonObject, parseJson } from "../../../io/json.ts";
import { checksum } from "./convert.ts";

const fileLimit = 2 ** 27;

interface Vocabulary {
  readonly sum: string;
  /** Ids by token; undefined where the file has a form that is not known. */
  readonly ids: ReadonlyMap<string, number> | undefined;
}

/** Ids of the model's tokens and of those added to it. */
function idsOf(root: JsonObject): ReadonlyMap<string, number> | undefined {
  const model = root["model"];
  if (!isJsonObject(model)) return undefined;
  const { vocab } = model;
  const ids = new Map<string, number>();
  if (Array.isArray(vocab)) {
    // A list of [token, score]: the place is the id.
    for (const [i, item] of vocab.entries()) {
      if (Array.isArray(item) && typeof item[0] === "string") ids.set(item[0], i);
    }
  } else if (isJsonObject(vocab)) {
    for (const [token, id] of Object.entries(vocab)) if (typeof id === "number") ids.set(token, id);
  } else return undefined;
  const added = root["added_tokens"];
  for (const item of Array.isArray(added) ? added : []) {
    if (!isJsonObject(item)) continue;
    const { content, id } = item;
    if (typeof content === "string" && typeof id === "number") ids.set(content, id);
  }
  return ids;
}

async function read(files: Files, folder: string): Promise<Vocabulary | undefined> {
  const path = files.join(folder, "tokenizer.json");
  if (!(await files.info(path))) return undefined;
  const bytes = await files.readBytes(path, fileLimit);
  const sum = checksum(bytes);
  const root = parseJson(bytes, path, { maxBytes: fileLimit });
  return { sum, ids: isJsonObject(root) ? idsOf(root) : undefined };
}

/**
 * Compares the tokenizers of models with the one that is written.
 * @param models folders by the names that they were given
 * @returns what the user should know: tokens that only one of two has
 * @throws FormatError when a token has another id elsewhere, since merged rows would then mean nothing.
 */
export async function compareVocabularies(
  files: Files,
  where: string,
  home: { readonly label: string; readonly path: string },
  models: readonly { readonly label: string; readonly path: string }[],
): Promise<string[]> {
  const known = await read(files, home.path);
  const warnings: string[] = [];
  for (const { label, path } of models) {
    if (path === home.path) continue;
    const other = await read(files, path);
    if (!known || !other) {
      if (known || other) {
        warnings.push(
          `"${known ? label : home.label}" has no tokenizer.json: whether its tokens are those of "${known ? home.label : label}" is not known.`,
        );
      }
      continue;
    }
    if (known.sum === other.sum || !known.ids || !other.ids) continue;
    let [missing, first] = [0, ""];
    for (const [token, id] of other.ids) {
      const here = known.ids.get(token);
      if (here === undefined) {
        if (missing++ === 0) first = token;
      } else if (here !== id) {
        throw new FormatError(
          `${where}: the tokenizers differ: token ${JSON.stringify(token)} has id ${id} in "${label}" and ${here} in "${home.label}" — merged embeddings would mean nothing; take models of one vocabulary.`,
          { model: label, token },
        );
      }
    }
    if (missing > 0) {
      warnings.push(
        `"${label}" has ${missing} tokens, as ${JSON.stringify(first)}, that the written tokenizer lacks.`,
      );
    }
  }
  return warnings;
}
