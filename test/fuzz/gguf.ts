/**
 * Reads mutated GGUF files and holds every answer against a second, plain reading of the format.
 *
 *   node --import tsx test/fuzz/gguf.ts --count 50000 --seed 1
 *   node --import tsx test/fuzz/gguf.ts --only 4711 --seed 1      one case, with its bytes
 *
 * A case passes where the reader finds exactly the tensors that the model finds, with their bytes and as
 * many numbers as their shapes say, or refuses with one of this package's errors, whose sentence names the
 * file and whose details name the byte, where the model refuses too. It fails for any other error, for a
 * byte asked outside the file, for more bytes asked than is fair, and for a slow answer.
 */
import { PlasticityError, UnsupportedError } from "../../src/errors.ts";
import type { Files, OpenFile } from "../../src/host/host.ts";
import { GgufFile } from "../../src/io/gguf-read.ts";
import { withGguf } from "../../src/models/gguf-folder.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { readGgufModel } from "./gguf-model.ts";

const path = "fuzz/model.gguf";
/** Of one case, with a machine that does other things too. */
const maxMs = 5000;

type Field = { readonly at: number; readonly size: 4 | 8 };

/** Writes a file and remembers where its numbers are. */
class Builder {
  readonly bytes: number[] = [];
  readonly fields: Field[] = [];

  u32(value: number): this {
    this.fields.push({ at: this.bytes.length, size: 4 });
    for (let i = 0; i < 4; i++) this.bytes.push((value >>> (8 * i)) & 255);
    return this;
  }

  u64(value: number): this {
    this.fields.push({ at: this.bytes.length, size: 8 });
    for (let i = 0; i < 8; i++) this.bytes.push(Number((BigInt(value) >> BigInt(8 * i)) & 255n));
    return this;
  }

  text(value: string): this {
    const encoded = new TextEncoder().encode(value);
    this.u64(encoded.length).bytes.push(...encoded);
    return this;
  }

  pad(to: number): this {
    while (this.bytes.length % to !== 0) this.bytes.push(0);
    return this;
  }
}

type Plan = readonly (readonly [
  name: string,
  shape: readonly number[],
  type: number,
  bytes: number,
])[];

function build(
  version: number,
  entries: readonly ((to: Builder) => void)[],
  plan: Plan,
  alignment = 32,
): Base {
  const to = new Builder();
  to.bytes.push(...new TextEncoder().encode("GGUF"));
  to.u32(version).u64(plan.length).u64(entries.length);
  for (const entry of entries) entry(to);
  let offset = 0;
  for (const [name, shape, type, bytes] of plan) {
    to.text(name).u32(shape.length);
    for (const dim of [...shape].reverse()) to.u64(dim);
    to.u32(type).u64(offset);
    offset += Math.ceil(bytes / alignment) * alignment;
  }
  to.pad(alignment);
  for (let i = 0; i < offset; i++) to.bytes.push((i * 7) & 63);
  return { bytes: Uint8Array.from(to.bytes), fields: to.fields };
}

interface Base {
  readonly bytes: Uint8Array;
  readonly fields: readonly Field[];
}

const text = (key: string, value: string) => (to: Builder) => void to.text(key).u32(8).text(value);
const number = (key: string, value: number) => (to: Builder) => void to.text(key).u32(4).u32(value);
const texts = (key: string, list: readonly string[]) => (to: Builder) => {
  to.text(key).u32(9).u32(8).u64(list.length);
  for (const item of list) to.text(item);
};

export const ggufBases: readonly Base[] = [
  build(3, [], []),
  build(2, [text("general.architecture", "llama")], [["a", [2, 3], 0, 24]]),
  build(
    3,
    [
      text("general.architecture", "llama"),
      number("llama.block_count", 1),
      number("llama.embedding_length", 32),
      texts("tokenizer.ggml.tokens", ["<s>", "é", "", "abc"]),
      (to) => void to.text("flag").u32(7).bytes.push(1),
    ],
    [
      ["token_embd.weight", [4, 32], 1, 256],
      ["blk.0.attn_q.weight", [2, 32], 8, 68],
      ["blk.0.attn_norm.weight", [32], 0, 128],
      ["blk.0.ffn_up.weight", [1, 256], 12, 144],
      ["blk.0.ffn_down.weight", [2, 2, 1, 32], 2, 72],
    ],
  ),
  build(
    3,
    [
      number("general.alignment", 64),
      (to) => {
        // Two arrays in an array, one of numbers and one of texts.
        to.text("nested").u32(9).u32(9).u64(2);
        to.u32(4).u64(3).u32(1).u32(2).u32(3);
        to.u32(8).u64(1).text("x");
      },
    ],
    [
      ["q6", [256], 14, 210],
      ["unknown", [3], 99, 0],
      ["empty", [0, 5], 0, 0],
      ["bf16", [7], 30, 14],
    ],
    64,
  ),
];

const numbers = [
  ...[0n, 1n, 2n, 3n, 4n, 5n, 8n, 9n, 12n, 13n, 31n, 32n, 33n, 64n, 255n, 256n, 65535n, 65536n],
  ...[2n ** 16n + 1n, 2n ** 20n, 2n ** 20n + 1n, 2n ** 24n, 2n ** 24n + 1n, 2n ** 31n - 1n],
  ...[
    2n ** 31n,
    2n ** 32n - 1n,
    2n ** 32n,
    2n ** 53n,
    2n ** 61n,
    2n ** 62n,
    2n ** 63n,
    2n ** 64n - 1n,
  ],
];

const pick = <T>(rng: Rng, list: readonly T[]): T => list[rng.integer(list.length)]!;

/** A file made from a valid one by one to three changes: of a number of the format, or of any bytes. */
export function mutatedGguf(rng: Rng): Uint8Array {
  const base = pick(rng, ggufBases);
  let file = Uint8Array.from(base.bytes);
  const times = 1 + rng.integer(3) * Number(rng.integer(3) === 0);
  for (let i = 0; i < times; i++) {
    if (rng.integer(3) > 0) {
      const { at, size } = pick(rng, base.fields);
      if (at + size > file.length) continue;
      const view = new DataView(file.buffer);
      const old = size === 8 ? view.getBigUint64(at, true) : BigInt(view.getUint32(at, true));
      const step = BigInt(pick(rng, [-64, -32, -2, -1, 1, 2, 32, 64]));
      const value = rng.integer(2) ? pick(rng, numbers) : old + step;
      if (size === 8) view.setBigUint64(at, BigInt.asUintN(64, value), true);
      else view.setUint32(at, Number(BigInt.asUintN(32, value)), true);
      continue;
    }
    const at = rng.integer(file.length);
    switch (rng.integer(5)) {
      case 0:
        file[at]! ^= 1 << rng.integer(8);
        break;
      case 1:
        file[at] = rng.integer(256);
        break;
      case 2:
        file = file.slice(0, at);
        break;
      case 3:
        file = Uint8Array.from([...file, ...new Uint8Array(1 + rng.integer(80))]);
        break;
      default: {
        // A run of bytes once more, or gone.
        const end = Math.min(file.length, at + 1 + rng.integer(24));
        const part = rng.integer(2) ? file.slice(at, end) : new Uint8Array();
        file = Uint8Array.from([
          ...file.slice(0, rng.integer(2) ? end : at),
          ...part,
          ...file.slice(end),
        ]);
      }
    }
    if (file.length === 0) return file;
  }
  return file;
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

type Open = (files: Files, path: string) => Promise<GgufFile>;

async function compare(
  file: GgufFile,
  content: Uint8Array,
  model: ReturnType<typeof readGgufModel>,
): Promise<void> {
  const wrong = (what: string): never => {
    throw new Error(what);
  };
  if ([...file.metadata.keys()].join("\n") !== model.keys.join("\n"))
    wrong("the metadata has other keys");
  if ([...file.tensors.keys()].join("\n") !== [...model.tensors.keys()].join("\n"))
    wrong("the file has other tensors");
  for (const [name, expected] of model.tensors) {
    const own = file.tensors.get(name)!;
    const what = `tensor ${JSON.stringify(name)}`;
    if (own.shape.join() !== expected.shape.join()) wrong(`${what} has shape ${own.shape}`);
    if (BigInt(own.offset) !== expected.start) wrong(`${what} lies at ${own.offset}`);
    if (
      own.bytes === undefined ? expected.bytes !== undefined : BigInt(own.bytes) !== expected.bytes
    ) {
      wrong(`${what} has ${own.bytes} bytes`);
    }
    try {
      const bytes = await file.readBytes(name);
      const place = content.subarray(own.offset, own.offset + bytes.length);
      if (Buffer.compare(bytes, place) !== 0) wrong(`${what} has other bytes`);
      const { data } = await file.read(name);
      if (BigInt(data.length) !== expected.shape.reduce((a, b) => a * b, 1n)) {
        wrong(`${what} was read as ${data.length} numbers`);
      }
    } catch (error) {
      if (!(error instanceof UnsupportedError)) throw error;
    }
  }
}

/** As a folder it is read or refused, in no other way. */
async function openAsFolder(content: Uint8Array): Promise<void> {
  const files = withGguf({
    info: async (name: string) =>
      name === path ? { path, bytes: content.length, isDirectory: false } : undefined,
    open: async () => new Memory(content),
    join: (...parts: readonly string[]) => parts.join("/"),
  } as unknown as Files);
  try {
    for (const name of ["config.json", "tokenizer.json", "model.safetensors"]) {
      if (!(await files.info(`${path}/${name}`))) continue;
      const file = await files.open(`${path}/${name}`);
      await file.read(new Uint8Array(file.bytes), 0);
      await file.close();
    }
  } catch (error) {
    if (!(error instanceof PlasticityError)) throw error;
  }
}

/** How a file is answered: "read", or the class of the refusal. @throws Error where that is wrong. */
async function answer(content: Uint8Array, open: Open): Promise<string> {
  let model: ReturnType<typeof readGgufModel> | undefined;
  let why = "";
  try {
    model = readGgufModel(content);
  } catch (error) {
    why = (error as Error).message;
  }
  const memory = new Memory(content);
  const files = { open: async () => memory } as unknown as Files;
  let file: GgufFile;
  try {
    file = await open(files, path);
  } catch (error) {
    if (!(error instanceof PlasticityError)) throw error;
    if (model) throw new Error(`a valid file was refused: ${error.message}`);
    if (!error.message.startsWith(path) || !/[.?]$/.test(error.message)) {
      throw new Error(`the sentence does not name the file: ${error.message}`);
    }
    if (typeof error.details["offset"] !== "number") throw new Error(`no offset: ${error.message}`);
    if (error.message.length > 1000)
      throw new Error(`a sentence of ${error.message.length} characters`);
    if (memory.closed !== 1) throw new Error(`a refused file was closed ${memory.closed} times`);
    if (memory.asked > content.length) throw new Error(`${memory.asked} bytes were asked`);
    return error.name;
  }
  if (!model) throw new Error(`a broken file was read (${why})`);
  await compare(file, content, model);
  // The header's window once, and every tensor twice.
  if (memory.asked > 3 * content.length) throw new Error(`${memory.asked} bytes were asked`);
  await file.close();
  await openAsFolder(content);
  return "read";
}

export interface GgufFuzzReport {
  readonly cases: number;
  readonly read: number;
  readonly refused: Readonly<Record<string, number>>;
  /** Sentences about cases that went wrong, at most twenty. */
  readonly failures: readonly string[];
  readonly slowestMs: number;
}

/**
 * Runs cases 0 to `count` of a seed; a case depends on the seed and its number alone.
 * @param open the reader; another one than ours only to see that a fault of it is found.
 */
export async function fuzzGguf(
  count: number,
  seed: number,
  open: Open = GgufFile.open,
): Promise<GgufFuzzReport> {
  const root = new Rng(seed).fold("gguf");
  const refused: Record<string, number> = {};
  const failures: string[] = [];
  let [read, slowestMs] = [0, 0];
  for (let i = 0; i < count; i++) {
    const content = mutatedGguf(root.fold(i));
    const start = performance.now();
    try {
      const kind = await answer(content, open);
      if (kind === "read") read++;
      else refused[kind] = (refused[kind] ?? 0) + 1;
    } catch (error) {
      if (failures.length < 20) failures.push(`case ${i}: ${String(error)}`);
    }
    const ms = performance.now() - start;
    if (ms > maxMs && failures.length < 20) failures.push(`case ${i}: took ${ms} ms`);
    slowestMs = Math.max(slowestMs, ms);
  }
  return { cases: count, read, refused, failures, slowestMs };
}

async function main(args: readonly string[]): Promise<number> {
  const option = (name: string, missing: number): number => {
    const at = args.indexOf(name);
    return at < 0 ? missing : Number(args[at + 1]);
  };
  const [count, seed, only] = [
    option("--count", 50_000),
    option("--seed", 1),
    option("--only", -1),
  ];
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  if (only >= 0) {
    const content = mutatedGguf(new Rng(seed).fold("gguf").fold(only));
    say(Buffer.from(content).toString("latin1"));
    say(Buffer.from(content).toString("base64"));
    say(await answer(content, GgufFile.open).catch((error: Error) => error.stack ?? error.message));
    return 0;
  }
  const start = performance.now();
  const report = await fuzzGguf(count, seed);
  const seconds = (performance.now() - start) / 1000;
  for (const failure of report.failures) say(failure);
  say(
    `gguf: ${report.cases} files in ${seconds.toFixed(1)} s, seed ${seed}; the slowest took ${report.slowestMs.toFixed(1)} ms, peak memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB`,
  );
  for (const [kind, times] of Object.entries({ read: report.read, ...report.refused })) {
    say(`${String(times).padStart(8)}  ${kind}`);
  }
  say(report.failures.length === 0 ? "no failure" : "FAILED");
  return report.failures.length === 0 ? 0 : 1;
}

if (process.argv[1]?.endsWith("test/fuzz/gguf.ts")) {
  process.exitCode = await main(process.argv.slice(2));
}
