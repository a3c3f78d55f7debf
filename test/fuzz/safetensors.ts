/**
 * Reads mutated safetensors files and holds every answer against a second, plain reading of the format.
 *
 *   node --import tsx test/fuzz/safetensors.ts --count 200000 --seed 1
 *   node --import tsx test/fuzz/safetensors.ts --only 4711 --seed 1      one case, with its bytes
 *
 * A case passes where the reader gives exactly the tensors that the model gives, or refuses with one of
 * this package's errors, whose sentence names the file, where the model refuses too. It fails for any
 * other error, for a byte asked outside the file, and for more bytes asked than twice the file's.
 */
import { FormatError, PlasticityError, UnsupportedError } from "../../src/errors.ts";
import type { Files, OpenFile } from "../../src/host/host.ts";
import { SafetensorsFile } from "../../src/io/safetensors.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { type ModelFile, readModel } from "./model.ts";
import { mutated } from "./mutate.ts";

const path = "fuzz/model.safetensors";

export interface FuzzReport {
  readonly cases: number;
  /** Files read whole. */
  readonly read: number;
  /** Refused files by what the error calls the reason. */
  readonly refused: Readonly<Record<string, number>>;
  /** Sentences about cases that went wrong, at most twenty. */
  readonly failures: readonly string[];
  readonly slowestMs: number;
}

/** A file in memory that counts what is asked of it. */
class Memory implements OpenFile {
  readonly path = path;
  readonly bytes: number;
  readonly #content: Uint8Array;
  asked = 0;
  closed = 0;

  constructor(content: Uint8Array) {
    this.#content = content;
    this.bytes = content.length;
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    this.asked += into.length;
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + into.length > this.bytes) {
      throw new Error(`bytes ${offset} to ${offset + into.length} asked of ${this.bytes}`);
    }
    into.set(this.#content.subarray(offset, offset + into.length));
  }

  async close(): Promise<void> {
    this.closed++;
  }
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

async function compare(file: SafetensorsFile, model: ModelFile): Promise<void> {
  const wrong = (what: string): never => {
    throw new Error(what);
  };
  const metadata = Object.entries(file.metadata);
  if (metadata.length !== model.metadata.size) wrong("the metadata has other keys");
  for (const [key, text] of metadata) {
    if (model.metadata.get(key) !== text) wrong(`metadata ${JSON.stringify(key)} differs`);
  }
  if (file.entries.size !== model.tensors.size) wrong("the file has other tensors");
  for (const [name, expected] of model.tensors) {
    const what = `tensor ${JSON.stringify(name)}`;
    const entry = file.entries.get(name) ?? wrong(`${what} is missing`);
    if (entry.dtype !== expected.dtype) wrong(`${what} has dtype ${entry.dtype}`);
    if (entry.shape.join() !== expected.shape.join()) wrong(`${what} has shape ${entry.shape}`);
    if (!isSame(await file.readBytes(name), expected.bytes)) wrong(`${what} has other bytes`);
    const isOddBool = expected.dtype === "BOOL" && expected.bytes.some((byte) => byte > 1);
    try {
      const { data, shape } = await file.read(name);
      if (isOddBool) wrong(`${what} of dtype BOOL was read with other bytes than 0 and 1`);
      if (shape.join() !== expected.shape.join()) wrong(`${what} was read with shape ${shape}`);
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      if (!isSame(bytes, expected.bytes)) wrong(`${what} was read with other numbers`);
    } catch (error) {
      const isKnown =
        error instanceof UnsupportedError && /^(F4|F6|F8|C64|U|I16)/.test(expected.dtype);
      if (!isKnown && !(isOddBool && error instanceof FormatError)) throw error;
    }
  }
}

type Open = (files: Files, path: string) => Promise<SafetensorsFile>;

/** How a file is answered: "read", or the kind of the refusal. @throws Error where that is wrong. */
async function answer(content: Uint8Array, open: Open): Promise<string> {
  let model: ModelFile | undefined;
  let why = "";
  try {
    model = readModel(content);
  } catch (error) {
    why = (error as Error).message;
  }
  const memory = new Memory(content);
  const files = { open: async () => memory } as unknown as Files;
  let file: SafetensorsFile;
  try {
    file = await open(files, path);
  } catch (error) {
    if (!(error instanceof PlasticityError)) throw error;
    if (model) throw new Error(`a valid file was refused: ${error.message}`);
    if (!error.message.startsWith(path) || !/ — |[.]$/.test(error.message)) {
      throw new Error(`the sentence does not name the file: ${error.message}`);
    }
    if (error.message.length > 1000)
      throw new Error(`the sentence has ${error.message.length} characters`);
    if (memory.closed !== 1) throw new Error(`a refused file was closed ${memory.closed} times`);
    if (memory.asked > content.length) throw new Error(`${memory.asked} bytes were asked`);
    return String(error.details["kind"]);
  }
  if (!model) throw new Error(`a broken file was read (${why})`);
  await compare(file, model);
  // Header once, and every tensor twice.
  if (memory.asked > 2 * content.length) throw new Error(`${memory.asked} bytes were asked`);
  await file.close();
  return "read";
}

/**
 * Runs cases 0 to `count` of a seed; a case depends on the seed and its number alone.
 * @param open the reader; another one than ours only to see that a fault of it is found.
 */
export async function fuzz(
  count: number,
  seed: number,
  open: Open = SafetensorsFile.open,
): Promise<FuzzReport> {
  const root = new Rng(seed).fold("safetensors");
  const refused: Record<string, number> = {};
  const failures: string[] = [];
  let read = 0;
  let slowestMs = 0;
  for (let i = 0; i < count; i++) {
    const content = mutated(root.fold(i));
    const start = performance.now();
    try {
      const kind = await answer(content, open);
      if (kind === "read") read++;
      else refused[kind] = (refused[kind] ?? 0) + 1;
    } catch (error) {
      if (failures.length < 20) failures.push(`case ${i}: ${String(error)}`);
    }
    slowestMs = Math.max(slowestMs, performance.now() - start);
  }
  return { cases: count, read, refused, failures, slowestMs };
}

async function main(args: readonly string[]): Promise<number> {
  const number = (name: string, missing: number): number => {
    const at = args.indexOf(name);
    return at < 0 ? missing : Number(args[at + 1]);
  };
  const [count, seed, only] = [
    number("--count", 200_000),
    number("--seed", 1),
    number("--only", -1),
  ];
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  if (only >= 0) {
    const content = mutated(new Rng(seed).fold("safetensors").fold(only));
    say(Buffer.from(content).toString("latin1"));
    say(Buffer.from(content).toString("base64"));
    say(
      await answer(content, SafetensorsFile.open).catch(
        (error: Error) => error.stack ?? error.message,
      ),
    );
    return 0;
  }
  const start = performance.now();
  const report = await fuzz(count, seed);
  const seconds = (performance.now() - start) / 1000;
  for (const failure of report.failures) say(failure);
  say(
    `${report.cases} files in ${seconds.toFixed(1)} s, seed ${seed}; the slowest took ${report.slowestMs.toFixed(1)} ms`,
  );
  for (const [kind, times] of Object.entries({ read: report.read, ...report.refused })) {
    say(`${String(times).padStart(8)}  ${kind}`);
  }
  say(report.failures.length === 0 ? "no failure" : "FAILED");
  return report.failures.length === 0 ? 0 : 1;
}

if (process.argv[1]?.endsWith("test/fuzz/safetensors.ts")) {
  process.exitCode = await main(process.argv.slice(2));
}
