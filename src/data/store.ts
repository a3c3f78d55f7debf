/**
 * Encoded examples in a file, for data larger than memory: written once by streaming, read by
 * position. The examples are bit for bit those that were written.
 *
 *   head     "PLXDATA1", then 0x01020304 as the machine writes it
 *   records  of each example: n ids as int32, then its mask, a bit a token, filled up to 4 bytes; the
 *            bit of the first token, which never carries loss, says that the answer was judged good
 *   index    n of each example as int32
 *   foot     count, tokens, loss tokens, largest id, start of the index (float64 each), hash of the
 *            index, hash of the data (16 characters each), "PLXDATA1"
 */
import { FormatError, OptionError, StateError, UnsupportedError } from "../errors.ts";
import type { Files, FileWriter, OpenFile } from "../host/host.ts";
import { DataHash } from "./data-hash.ts";
import type { Example } from "./example.ts";
import { checkIndex, countLoss, type ExampleSet, memorySet } from "./set.ts";

const magic = "PLXDATA1";
const order = 0x01020304;
const headBytes = 12;
const footBytes = 5 * 8 + 2 * 16 + 8;
/** Examples in a file, and tokens of one. */
const maxCount = 2 ** 28;
const maxLength = 2 ** 24;
/** Bytes gathered before they are written. */
const blockBytes = 2 ** 20;

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);
const maskWords = (length: number): number => Math.ceil(length / 32);
const recordBytes = (length: number): number => 4 * (length + maskWords(length));

function bytesOf(words: Int32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** Writes examples one by one; `finish` makes the file appear, whole. */
export class ExampleFileWriter {
  readonly #writer: FileWriter;
  readonly #hash = new DataHash();
  readonly #block = new Int32Array(blockBytes / 4);
  #used = 0;
  #lengths = new Int32Array(1024);
  #count = 0;
  #tokens = 0;
  #lossTokens = 0;
  #maxId = 0;
  #offset = headBytes;
  #isFinished = false;

  private constructor(writer: FileWriter) {
    this.#writer = writer;
  }

  static async create(files: Files, path: string): Promise<ExampleFileWriter> {
    const own = new ExampleFileWriter(await files.create(path));
    await own.#writer.write(ascii(magic));
    await own.#writer.write(bytesOf(Int32Array.of(order)));
    return own;
  }

  async #flush(): Promise<void> {
    // A copy, as the writer may keep what it is given while the block fills again.
    await this.#writer.write(bytesOf(this.#block.slice(0, this.#used)));
    this.#used = 0;
  }

  /** @throws OptionError for a packed row, or one that is too long. */
  async add(example: Example): Promise<void> {
    const { ids, mask } = example;
    if (example.segments) {
      throw new OptionError("examples: packed rows are not stored — store examples, then pack.");
    }
    if (ids.length !== mask.length || ids.length > maxLength || this.#count >= maxCount) {
      throw new OptionError(
        `examples: example ${this.#count} has ${ids.length} tokens and a mask of ${mask.length}; at most ${maxLength} tokens and ${maxCount} examples are stored.`,
      );
    }
    const words = recordBytes(ids.length) / 4;
    if (this.#used + words > this.#block.length) await this.#flush();
    const isLarge = words > this.#block.length;
    const record = isLarge
      ? new Int32Array(words)
      : this.#block.subarray(this.#used, this.#used + words);
    record.set(ids);
    record.fill(0, ids.length);
    for (let i = 0; i < ids.length; i++) {
      if (ids[i]! > this.#maxId) this.#maxId = ids[i]!;
      if (i > 0 && mask[i]) record[ids.length + (i >> 5)]! |= 1 << (i & 31);
    }
    if (example.isGood && ids.length > 0) record[ids.length]! |= 1;
    if (isLarge) await this.#writer.write(bytesOf(record));
    else this.#used += words;
    this.#hash.example(example);
    if (this.#count === this.#lengths.length) {
      const grown = new Int32Array(2 * this.#count);
      grown.set(this.#lengths);
      this.#lengths = grown;
    }
    this.#lengths[this.#count++] = ids.length;
    this.#tokens += ids.length;
    this.#lossTokens += countLoss(mask);
    this.#offset += 4 * words;
  }

  async finish(): Promise<void> {
    if (this.#isFinished) throw new StateError("examples: this file is finished.");
    this.#isFinished = true;
    await this.#flush();
    const lengths = this.#lengths.subarray(0, this.#count);
    await this.#writer.write(bytesOf(lengths));
    const numbers = Float64Array.of(
      this.#count,
      this.#tokens,
      this.#lossTokens,
      this.#maxId,
      this.#offset,
    );
    await this.#writer.write(new Uint8Array(numbers.buffer));
    await this.#writer.write(ascii(hashOf(lengths) + this.#hash.digest() + magic));
    await this.#writer.commit();
  }

  /** Leaves no file. */
  async abort(): Promise<void> {
    await this.#writer.abort();
  }
}

function hashOf(lengths: Int32Array): string {
  const hash = new DataHash();
  hash.words(lengths);
  return hash.digest();
}

/**
 * Writes examples to a file as they come.
 * @throws OptionError for packed rows.
 */
export async function writeExampleFile(
  files: Files,
  path: string,
  examples: AsyncIterable<Example> | Iterable<Example>,
): Promise<void> {
  const writer = await ExampleFileWriter.create(files, path);
  try {
    for await (const example of examples) await writer.add(example);
    await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

function parseFoot(bytes: Uint8Array): { numbers: Float64Array; texts: string } {
  return {
    numbers: new Float64Array(bytes.slice(0, 40).buffer),
    texts: String.fromCharCode(...bytes.subarray(40)),
  };
}

async function openIndex(file: OpenFile): Promise<{
  lengths: Int32Array;
  offsets: Float64Array;
  numbers: readonly number[];
  dataHash: string;
}> {
  const { path, bytes } = file;
  const wrong = (what: string): FormatError =>
    new FormatError(`${path}: ${what} — write the file of examples again.`, { path });
  const head = new Uint8Array(headBytes);
  const foot = new Uint8Array(footBytes);
  if (bytes < headBytes + footBytes) throw wrong(`has ${bytes} bytes, too few`);
  await file.read(head, 0);
  await file.read(foot, bytes - footBytes);
  const { numbers, texts } = parseFoot(foot);
  if (String.fromCharCode(...head.subarray(0, 8)) !== magic || texts.slice(32) !== magic) {
    throw wrong("is no file of examples, or is cut short");
  }
  if (new Int32Array(head.slice(8).buffer)[0] !== order) {
    throw new UnsupportedError(`${path}: was written on a machine of the other byte order.`);
  }
  const [count, tokens, , , indexAt] = [...numbers] as [number, number, number, number, number];
  const isWhole = [...numbers].every((value) => Number.isSafeInteger(value) && value >= 0);
  if (!isWhole || count > maxCount || indexAt + 4 * count + footBytes !== bytes) {
    throw wrong(`names ${count} examples and an index at ${indexAt}, and has ${bytes} bytes`);
  }
  const lengths = new Int32Array(count);
  await file.read(bytesOf(lengths), indexAt);
  if (hashOf(lengths) !== texts.slice(0, 16)) throw wrong("its index is damaged");
  const offsets = new Float64Array(count);
  let [at, sum] = [headBytes, 0];
  for (let i = 0; i < count; i++) {
    offsets[i] = at;
    if (!(lengths[i]! >= 0 && lengths[i]! <= maxLength)) {
      throw wrong(`example ${i} has ${lengths[i]} tokens`);
    }
    at += recordBytes(lengths[i]!);
    sum += lengths[i]!;
  }
  if (at !== indexAt || sum !== tokens) throw wrong("its index does not match its records");
  return { lengths, offsets, numbers: [...numbers], dataHash: texts.slice(16, 32) };
}

/**
 * The examples of a file. Index and sizes are checked; `verify` of the result reads all records.
 * Memory: 12 bytes an example.
 * @throws FormatError when the file is damaged.
 */
export async function fileSet(
  files: Files,
  path: string,
): Promise<ExampleSet & { verify(): Promise<void> }> {
  const file = await files.open(path);
  try {
    const { lengths, offsets, numbers, dataHash } = await openIndex(file);
    const [count, tokens, lossTokens, maxId] = numbers as [number, number, number, number];
    const read = async (index: number): Promise<Example> => {
      checkIndex(index, count);
      const length = lengths[index]!;
      const words = new Int32Array(recordBytes(length) / 4);
      await file.read(bytesOf(words), offsets[index]!);
      const ids = words.slice(0, length);
      const mask = new Uint8Array(length);
      for (let i = 0; i < length; i++) {
        mask[i] = (words[length + (i >> 5)]! >>> (i & 31)) & 1;
        if (ids[i]! < 0 || ids[i]! > maxId) {
          throw new FormatError(
            `${path}: example ${index} holds the id ${ids[i]}, ids end at ${maxId} — the file is damaged, write it again.`,
            { path },
          );
        }
      }
      const isGood = mask[0] === 1;
      if (isGood) mask[0] = 0;
      return isGood ? { ids, mask, isGood } : { ids, mask };
    };
    return {
      count,
      lengths,
      tokens,
      lossTokens,
      dataHash,
      get: (indices) => Promise.all(Array.from(indices, read)),
      close: () => file.close(),
      async verify() {
        const hash = new DataHash();
        for (let i = 0; i < count; i++) hash.example(await read(i));
        if (hash.digest() === dataHash) return;
        throw new FormatError(
          `${path}: its examples hash to ${hash.digest()}, ${dataHash} was written — the file is damaged, write it again.`,
          { path },
        );
      },
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

export interface CollectOptions {
  /** Bytes of tokens and masks held in memory; default 256 MiB. More go to the file. */
  readonly memoryLimit?: number;
  /** Where examples go that memory does not hold; without it all stay in memory. */
  readonly spillPath?: string;
}

/** Gathers examples in memory, or in a file once they are many. */
export class SetCollector {
  readonly #files: Files;
  readonly #limit: number;
  readonly #path: string | undefined;
  #examples: Example[] = [];
  #bytes = 0;
  #writer: ExampleFileWriter | undefined;

  constructor(files: Files, options: CollectOptions = {}) {
    const { memoryLimit = 2 ** 28, spillPath } = options;
    if (!(memoryLimit >= 0)) {
      throw new OptionError(`data: memoryLimit must be a number from 0, got ${memoryLimit}.`);
    }
    this.#files = files;
    this.#limit = memoryLimit;
    this.#path = spillPath;
  }

  async add(example: Example): Promise<void> {
    if (this.#writer) return this.#writer.add(example);
    this.#examples.push(example);
    this.#bytes += example.ids.byteLength + example.mask.byteLength;
    if (this.#bytes <= this.#limit || this.#path === undefined) return;
    this.#writer = await ExampleFileWriter.create(this.#files, this.#path);
    for (const held of this.#examples) await this.#writer.add(held);
    this.#examples = [];
  }

  async finish(): Promise<ExampleSet> {
    if (!this.#writer) return memorySet(this.#examples);
    await this.#writer.finish();
    return fileSet(this.#files, this.#path!);
  }

  async abort(): Promise<void> {
    await this.#writer?.abort();
  }
}
