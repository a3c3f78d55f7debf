/** Pictures with their classes: a folder for each class, or a file of records with paths and labels. */
import { FormatError, MissingError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { formatOf, readRecords } from "./formats.ts";
import { shownKeys } from "./records.ts";
import { type SplitOptions, splitBound, splitHash } from "./split.ts";

/** Where a picture lies, and its class, where it has one. */
export interface PictureFile {
  readonly path: string;
  readonly label?: string;
}

export interface LabelledPicture extends PictureFile {
  readonly label: string;
}

/** Files that are taken for pictures; others in a folder are left aside. */
const endings = /\.(jpe?g|png|webp|gif|tiff?|avif|bmp|heic|heif)$/i;

/** Pictures of one data set; their paths are held in memory. */
const maxPictures = 2 ** 22;
/** Folders inside each other. */
const maxDepth = 16;

const nameOf = (path: string): string =>
  path
    .replace(/[/\\]+$/, "")
    .split(/[/\\]/)
    .at(-1)!;

function checkCount(count: number, where: string): void {
  if (count <= maxPictures) return;
  throw new OptionError(`${where}: has more than ${maxPictures} pictures — take a part of it.`);
}

/**
 * The pictures in a folder and those below it, in order of their names.
 * @throws MissingError when there is none.
 */
export async function findPictures(files: Files, folder: string): Promise<string[]> {
  const found: string[] = [];
  const walk = async (path: string, depth: number): Promise<void> => {
    if (depth > maxDepth) {
      throw new OptionError(`${path}: is more than ${maxDepth} folders deep — is there a loop?`);
    }
    for (const entry of await files.list(path)) {
      const name = nameOf(entry.path);
      if (name.startsWith(".")) continue;
      if (entry.isDirectory) await walk(entry.path, depth + 1);
      else if (endings.test(name)) found.push(entry.path);
    }
    checkCount(found.length, folder);
  };
  await walk(folder, 0);
  if (found.length > 0) return found;
  throw new MissingError(
    `${folder}: holds no pictures — their names end in .jpg, .png, .webp, .gif, .tiff, .avif or .bmp.`,
  );
}

/** Pictures in the folders of a folder, whose names are the classes. */
async function fromFolders(files: Files, folder: string): Promise<LabelledPicture[]> {
  const classes = (await files.list(folder)).filter(
    ({ path, isDirectory }) => isDirectory && !nameOf(path).startsWith("."),
  );
  const found: LabelledPicture[] = [];
  for (const { path } of classes) {
    const label = nameOf(path);
    const paths = await findPictures(files, path).catch((error: unknown) => {
      // An empty class is no class.
      if (error instanceof MissingError) return [];
      throw error;
    });
    found.push(...paths.map((picture) => ({ path: picture, label })));
    checkCount(found.length, folder);
  }
  if (found.length > 0) return found;
  throw new MissingError(
    `${folder}: has no folders with pictures — give each class a folder of its name, or a .csv or .jsonl file with path and label.`,
  );
}

const isAbsolute = (path: string): boolean => /^([/\\]|[a-z]:[/\\])/i.test(path);

/** Records with `path` and `label`; paths start from the file's own folder. */
async function fromRecords(
  files: Files,
  file: string,
  map: Readonly<Record<string, string>> | undefined,
): Promise<LabelledPicture[]> {
  const folder = /^(.*)[/\\][^/\\]*$/.exec(file)?.[1] ?? ".";
  const found: LabelledPicture[] = [];
  const options = map ? { map } : {};
  for await (const { record, where } of readRecords(files, file, options)) {
    const path = record["path"] ?? record["file_name"] ?? record["image"];
    const label = record["label"] ?? record["class"];
    if (typeof path !== "string" || path === "") {
      throw new FormatError(
        `${where}: needs a picture's path in "path", "file_name" or "image" — it has ${shownKeys(record)}.`,
      );
    }
    if ((typeof label !== "string" && typeof label !== "number") || label === "") {
      throw new FormatError(
        `${where}: needs a class in "label" or "class" — it has ${shownKeys(record)}.`,
      );
    }
    found.push({
      path: isAbsolute(path) ? path : files.join(folder, path),
      label: String(label),
    });
    checkCount(found.length, file);
  }
  if (found.length > 0) return found;
  throw new MissingError(`${file}: holds no records.`);
}

export interface ReadPicturesOptions extends SplitOptions {
  /** Columns of a file of records to be read under another name: `{ photo: "path" }`. */
  readonly map?: Readonly<Record<string, string>>;
}

export interface PictureSplit {
  readonly train: readonly LabelledPicture[];
  readonly heldOut: readonly LabelledPicture[];
  /** All classes, in order of their names. */
  readonly labels: readonly string[];
}

const heldOutNames = ["validation", "valid", "val", "test"];

/**
 * Pictures with classes for training and judging. A folder holds one folder for each class; or `train`
 * and, held out, `validation`, `valid`, `val` or `test`, with such folders inside. A file holds records with
 * `path` and `label`. Without a part of its own, pictures are held out by a hash of their paths inside
 * the folder, so that others added later move none.
 * @throws MissingError where there are no pictures, FormatError for records that lack a field.
 */
export async function readPictures(
  files: Files,
  path: string,
  options: ReadPicturesOptions = {},
): Promise<PictureSplit> {
  const info = await files.info(path);
  if (!info) throw new MissingError(`${path}: is not there — check the path.`);
  if (!info.isDirectory) {
    formatOf(path);
    return split(await fromRecords(files, path, options.map), path, options);
  }
  const inside = (await files.list(path)).filter(({ isDirectory }) => isDirectory);
  const named = (name: string): string | undefined =>
    inside.find((entry) => nameOf(entry.path) === name)?.path;
  const trainFolder = named("train");
  const heldOutFolder = heldOutNames.map(named).find((folder) => folder !== undefined);
  const isSplit = trainFolder !== undefined && inside.length <= 1 + heldOutNames.length;
  if (!isSplit) return split(await fromFolders(files, path), path, options);
  const train = await fromFolders(files, trainFolder);
  if (heldOutFolder === undefined) return split(train, trainFolder, options);
  const heldOut = await fromFolders(files, heldOutFolder);
  return { train, heldOut, labels: labelsOf([...train, ...heldOut], path) };
}

function labelsOf(pictures: readonly LabelledPicture[], where: string): string[] {
  const labels = [...new Set(pictures.map(({ label }) => label))].sort();
  if (labels.length >= 2 && labels.length <= 65536) return labels;
  throw new OptionError(
    `${where}: has ${labels.length} ${labels.length === 1 ? "class" : "classes"} (${labels.slice(0, 3).join(", ")}), a classification needs 2 to 65536.`,
  );
}

function split(
  pictures: readonly LabelledPicture[],
  root: string,
  options: SplitOptions,
): PictureSplit {
  const hashes = Float64Array.from(pictures, ({ path }) =>
    splitHash(path.startsWith(root) ? path.slice(root.length) : path),
  );
  const bound = splitBound(hashes, options);
  return {
    train: pictures.filter((_, i) => hashes[i]! >= bound),
    heldOut: pictures.filter((_, i) => hashes[i]! < bound),
    labels: labelsOf(pictures, root),
  };
}
