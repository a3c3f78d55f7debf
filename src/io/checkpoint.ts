/** The weights of a model folder: one safetensors file, or several with an index. */
import { FormatError, MissingError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { isJsonObject, parseJson } from "./json.ts";
import { SafetensorsFile, type TensorEntry } from "./safetensors.ts";

const singleName = "model.safetensors";
const indexName = "model.safetensors.index.json";
const maxIndexBytes = 2 ** 26;
/** Each shard keeps a file open; common systems allow 1024. */
const maxShards = 512;

export interface Checkpoint {
  readonly entries: ReadonlyMap<string, TensorEntry>;
  read(name: string): Promise<Tensor>;
  readBytes(name: string): Promise<Uint8Array<ArrayBuffer>>;
  close(): Promise<void>;
}

/** Names of tensors by the file that holds them. */
function readIndex(text: string, path: string): Map<string, string[]> {
  const root = parseJson(text, path);
  const wrong = (what: string): FormatError => new FormatError(`${path}: ${what}`, { path });
  const weightMap = isJsonObject(root) ? root["weight_map"] : undefined;
  if (!isJsonObject(weightMap)) throw wrong("must have an object weight_map.");
  const shards = new Map<string, string[]>();
  for (const [name, file] of Object.entries(weightMap)) {
    // A plain name: a path could lead out of the folder.
    if (typeof file !== "string" || !/^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$/.test(file)) {
      throw wrong(
        `weight_map sends ${JSON.stringify(name)} to ${JSON.stringify(file)} — it must be the name of a file in this folder.`,
      );
    }
    const names = shards.get(file);
    if (names) names.push(name);
    else shards.set(file, [name]);
    if (shards.size > maxShards) throw wrong(`names more than ${maxShards} files.`);
  }
  return shards;
}

/** `owner` says which file each tensor is read from. */
function makeCheckpoint(
  folder: string,
  files: readonly SafetensorsFile[],
  owner: ReadonlyMap<string, SafetensorsFile>,
): Checkpoint {
  const entries = new Map<string, TensorEntry>();
  for (const [name, file] of owner) entries.set(name, file.entries.get(name)!);
  const fileOf = (name: string): SafetensorsFile => {
    const file = owner.get(name);
    if (file) return file;
    throw new MissingError(`${folder}: has no tensor ${JSON.stringify(name)}.`, {
      kind: "TensorNotFound",
      path: folder,
      name,
    });
  };
  return {
    entries,
    read: async (name) => fileOf(name).read(name),
    readBytes: async (name) => fileOf(name).readBytes(name),
    async close() {
      await Promise.all(files.map((file) => file.close()));
    },
  };
}

async function openShards(files: Files, folder: string, indexPath: string): Promise<Checkpoint> {
  const shards = readIndex(await files.readText(indexPath, maxIndexBytes), indexPath);
  const opened: SafetensorsFile[] = [];
  try {
    const owner = new Map<string, SafetensorsFile>();
    for (const [fileName, names] of shards) {
      const file = await SafetensorsFile.open(files, files.join(folder, fileName));
      opened.push(file);
      for (const name of names) {
        if (!file.entries.has(name)) {
          throw new FormatError(
            `${indexPath}: weight_map sends ${JSON.stringify(name)} to "${fileName}", which does not hold it — the index belongs to other files.`,
            { kind: "TensorNotFound", path: indexPath, name },
          );
        }
        owner.set(name, file);
      }
    }
    return makeCheckpoint(folder, opened, owner);
  } catch (error) {
    await Promise.all(opened.map((file) => file.close()));
    throw error;
  }
}

/**
 * Says of a folder without safetensors that its weights are a pickle, if they are.
 * @throws UnsupportedError naming the file.
 */
export async function refusePickle(files: Files, folder: string): Promise<void> {
  if (!(await files.info(folder))?.isDirectory) return;
  const found = (await files.list(folder)).find(({ path }) =>
    /\.(?:bin|pt|pth|ckpt|pkl|pickle)$/.test(path),
  );
  if (!found) return;
  throw new UnsupportedError(
    `${found.path}: is a pickle, which can run code when it is read, and so is never read — save the weights as safetensors, in transformers and PEFT: save_pretrained("<folder>", safe_serialization=True).`,
    { path: found.path },
  );
}

/**
 * Opens `model.safetensors`, or else the files that `model.safetensors.index.json` names, and
 * checks every header.
 * @throws MissingError when the folder has neither, or lacks a file that the index names.
 * @throws UnsupportedError when it has a pickle instead, which is never read.
 * @throws FormatError when a file or the index breaks its format.
 */
export async function openCheckpoint(files: Files, folder: string): Promise<Checkpoint> {
  const single = files.join(folder, singleName);
  if (await files.info(single)) {
    const file = await SafetensorsFile.open(files, single);
    return makeCheckpoint(folder, [file], new Map([...file.entries.keys()].map((n) => [n, file])));
  }
  const indexPath = files.join(folder, indexName);
  if (!(await files.info(indexPath))) await refusePickle(files, folder);
  if (await files.info(indexPath)) return openShards(files, folder, indexPath);
  throw new MissingError(
    `${folder}: has neither "${singleName}" nor "${indexName}" — name a folder with safetensors weights.`,
    { path: folder },
  );
}
