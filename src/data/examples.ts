/** Examples for fine-tuning: files of known formats and layouts, read whole or one by one. */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { RawExample } from "./example.ts";
import { type ReadOptions, readRecords } from "./formats.ts";
import { checkMap, type LayoutOptions, layoutFields, toExample } from "./layouts.ts";

export {
  applyTemplate,
  defaultTemplate,
  type EncodedExamples,
  type EncodeExamplesOptions,
  encodeExamples,
} from "./encode.ts";
export { epochBatches } from "./epochs.ts";
export type { Example, RawExample } from "./example.ts";

/** How a file of examples is read. */
export type ReadExamplesOptions = Pick<ReadOptions, "format" | "map"> & LayoutOptions;

/**
 * Examples of a file as it streams, each with the place it was read from.
 * @throws FormatError naming file and line; also when the file holds no examples.
 * @throws OptionError when the file's ending says no known format, or a mapping names no field.
 */
export async function* streamExamples(
  files: Files,
  path: string,
  options: ReadExamplesOptions = {},
): AsyncGenerator<RawExample> {
  checkMap(options.map ?? {});
  let isEmpty = true;
  for await (const found of readRecords(files, path, { ...options, fields: layoutFields })) {
    isEmpty = false;
    yield toExample(found, options);
  }
  if (isEmpty) throw new FormatError(`${path}: holds no examples.`, { path });
}

/**
 * All examples of a file. Formats are told by the file's ending: lines of JSON, JSON, CSV, TSV,
 * Parquet, or text, of which each paragraph is an example. Layouts are told by the fields: text,
 * prompt and completion, chats, Alpaca, preferences.
 * @throws FormatError naming file and line; also when the file holds no examples.
 * @throws OptionError when the file's ending says no known format, or a mapping names no field.
 */
export async function readExamples(
  files: Files,
  path: string,
  options: ReadExamplesOptions = {},
): Promise<RawExample[]> {
  const examples: RawExample[] = [];
  for await (const example of streamExamples(files, path, options)) examples.push(example);
  return examples;
}
