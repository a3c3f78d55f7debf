/**
 * Files for the fuzzer: a few valid ones, and what goes wrong with them. Half of the changes know the
 * format (an offset, a dtype, a key), half do not (a bit, a cut); some leave the file valid.
 */
import type { Rng } from "../../src/tensor/rng.ts";
import { bits, type Json, readTree } from "./model.ts";

const utf8 = new TextEncoder();

/** A file with a header as written and its length in front. */
function fileOf(header: string | Uint8Array, data: Uint8Array, declared?: bigint): Uint8Array {
  const json = typeof header === "string" ? utf8.encode(header) : header;
  const file = new Uint8Array(8 + json.length + data.length);
  new DataView(file.buffer).setBigUint64(0, declared ?? BigInt(json.length), true);
  file.set(json, 8);
  file.set(data, 8 + json.length);
  return file;
}

function split(file: Uint8Array): { header: Uint8Array; data: Uint8Array } {
  if (file.length < 8) return { header: file, data: new Uint8Array() };
  const size = new DataView(file.buffer, file.byteOffset).getUint32(0, true);
  const end = Math.min(file.length, 8 + size);
  return { header: file.subarray(8, end), data: file.subarray(end) };
}

type Plan = readonly (readonly [name: string, dtype: string, shape: readonly number[]])[];

function build(plan: Plan, metadata = "", padding = 0): Uint8Array {
  let end = 0;
  const fields = plan.map(([name, dtype, shape]) => {
    const start = end;
    end += (shape.reduce((a, b) => a * b, 1) * Number(bits[dtype]!)) / 8;
    return `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${start},${end}]}`;
  });
  if (metadata) fields.unshift(`"__metadata__":${metadata}`);
  // 0 and 1 alone, so that BOOL may lie anywhere.
  const data = Uint8Array.from({ length: end }, (_, i) => (i * i + (i >> 2)) & 1);
  return fileOf(`{${fields.join(",")}}${" ".repeat(padding)}`, data);
}

export const bases: readonly Uint8Array[] = [
  build([]),
  build([["a", "F32", [2, 3]]]),
  build(
    [
      ["layers.0.weight", "F32", [4, 4]],
      ["layers.0.bias", "F16", [4]],
      ["steps", "I64", []],
      ["mask", "BOOL", [3, 5]],
      ["scale", "BF16", [1, 2, 2]],
    ],
    '{"format":"pt","note":"α \\u00e9"}',
    5,
  ),
  build([
    ["none", "F32", [0]],
    ["empty", "I32", [3, 0, 2]],
    ["one", "F64", [1, 1, 1, 1]],
    ["last", "U8", [0, 7]],
  ]),
  build([
    ["four", "F4", [2, 3]],
    ["six", "F6_E2M3", [4, 4]],
    ["eight", "F8_E4M3", [5]],
    ["complex", "C64", [2]],
    ["wide", "U64", [2]],
    ["u32", "U32", [1]],
    ["i16", "I16", [3]],
    ["i8", "I8", [2]],
  ]),
  build(
    [
      ["__proto__", "U8", [2]],
      ["constructor", "U8", [2]],
      ["ключ 🙂", "I8", [3]],
      ["", "U8", [1]],
      ['quote " \\ \n', "F32", [1]],
    ],
    "{}",
  ),
  build(Array.from({ length: 24 }, (_, i) => [`t${i}`, "F32", [i % 4, 2]] as const)),
];

type Mutable = { kind: string; pairs?: [string, Mutable][]; items?: Mutable[]; text?: string };

/** JSON text of a tree, with numbers and keys as they stand; spaces now and then. */
function print(tree: Mutable, rng: Rng): string {
  const gap = (): string =>
    rng.integer(40) === 0 ? [" ", "\n", "\t\r", "  "][rng.integer(4)]! : "";
  const quote = (text: string): string => {
    const written = JSON.stringify(text);
    if (rng.integer(30) > 0) return written;
    // The same text in escapes.
    return `"${Array.from({ length: text.length }, (_, i) => `\\u${text.charCodeAt(i).toString(16).padStart(4, "0")}`).join("")}"`;
  };
  if (tree.kind === "object") {
    const pairs = tree.pairs!.map(
      ([key, value]) => `${gap()}${quote(key)}${gap()}:${gap()}${print(value, rng)}${gap()}`,
    );
    return `{${pairs.join(",")}}`;
  }
  if (tree.kind === "list")
    return `[${tree.items!.map((item) => gap() + print(item, rng)).join(",")}]`;
  return tree.kind === "text" ? quote(tree.text!) : tree.text!;
}

/** Whole numbers, and above all others forms that are none. */
const numbers = [
  "0",
  "1",
  "2",
  "3",
  "7",
  "8",
  "64",
  "-1",
  "-0",
  "1.0",
  "1e1",
  "1E-2",
  "0.5",
  "01",
  "+1",
  "1.",
  "255",
  "65536",
  "4294967295",
  "4294967296",
  "9007199254740991",
  "9007199254740992",
  "9007199254740993",
  "9223372036854775807",
  "9223372036854775808",
  "18446744073709551615",
  "18446744073709551616",
  "1e400",
  "1e-400",
  "99999999999999999999999999",
  "NaN",
  "Infinity",
];
const words = ["null", "true", "false", "[]", "{}", '""', '"F32"', "[[]]", "nul", "undefined"];
const texts = ["", "a", "dtype", "shape", "data_offsets", "__metadata__", "__proto__", "toString"];
const odd = ["\ud800", "\udc00", "\u0000", "\u2028", "𝕏", "\ufeff", "F32 ", "f32", "F16", "BOOL"];

const raw = (text: string): Mutable => ({ kind: "number", text });

function pick<T>(rng: Rng, list: readonly T[]): T {
  return list[rng.integer(list.length)]!;
}

function nest(rng: Rng): Mutable {
  const depth = rng.integer(12);
  const [open, close] = rng.integer(2) ? ["[", "]"] : ['{"a":', "}"];
  return raw(open.repeat(depth) + "1" + close.repeat(depth));
}

/** One change of a header's tree. */
function changeTree(root: Mutable, rng: Rng): void {
  const entries = root.pairs!;
  const entry = entries.length > 0 ? pick(rng, entries) : undefined;
  const fields = entry?.[1].pairs;
  const field = (name: string): Mutable | undefined => fields?.find(([key]) => key === name)?.[1];
  const offsets = field("data_offsets")?.items;
  const shape = field("shape")?.items;
  const step = (item: Mutable | undefined): void => {
    if (item?.text && /^\d{1,15}$/.test(item.text)) {
      item.text = String(Math.max(0, Number(item.text) + pick(rng, [-8, -4, -1, 1, 2, 4, 8, 24])));
    }
  };
  switch (rng.integer(21)) {
    case 0: // a key twice, with the same or with another value
      if (entry) entries.splice(rng.integer(entries.length + 1), 0, structuredClone(entry));
      break;
    case 1:
      if (entry) entry[0] = pick(rng, [...texts, ...odd, pick(rng, entries)[0]]);
      break;
    case 2: // an offset a little off: a hole or an overlap
      if (offsets) step(pick(rng, offsets));
      break;
    case 3: // both offsets moved
      offsets?.forEach((item) => {
        item.text = String(Number(item.text) + 4);
      });
      break;
    case 4: {
      const at = offsets && rng.integer(offsets.length + 1);
      if (at !== undefined) offsets!.splice(at, rng.integer(2), raw(pick(rng, numbers)));
      break;
    }
    case 5:
      offsets?.reverse();
      break;
    case 6:
      if (shape) step(pick(rng, shape));
      break;
    case 7:
      if (shape)
        shape.splice(rng.integer(shape.length + 1), rng.integer(2), raw(pick(rng, numbers)));
      break;
    case 8: // the same number of elements in another shape: stays valid
      if (shape) {
        if (rng.integer(2)) shape.reverse();
        else shape.push(raw("1"));
      }
      break;
    case 9:
      if (field("dtype")) field("dtype")!.text = pick(rng, [...Object.keys(bits), ...odd]);
      break;
    case 10:
      if (fields && fields.length > 0) fields.splice(rng.integer(fields.length), 1);
      break;
    case 11: // an unknown field: stays valid where its value is
      fields?.splice(rng.integer(fields.length + 1), 0, [
        pick(rng, [...texts, ...odd]),
        pick(rng, [raw(pick(rng, numbers)), raw(pick(rng, words)), nest(rng)]),
      ]);
      break;
    case 12:
      if (fields && fields.length > 0) {
        pick(rng, fields)[1] = pick(rng, [
          raw(pick(rng, numbers)),
          raw(pick(rng, words)),
          nest(rng),
        ]);
      }
      break;
    case 13: // a type with as many bits, or with fewer than a byte
      if (field("dtype")) {
        const own = bits[field("dtype")!.text!];
        const like = Object.keys(bits).filter((name) => bits[name] === own);
        field("dtype")!.text = pick(rng, rng.integer(3) ? like : ["F4", "F6_E2M3", "F6_E3M2"]);
      }
      break;
    case 19:
      if (entry) entry[1] = pick(rng, [raw(pick(rng, numbers)), raw(pick(rng, words)), nest(rng)]);
      break;
    case 14: // two tensors change places in the data
      if (entry && fields) {
        const other = pick(rng, entries)[1].pairs;
        const [a, b] = [fields, other].map((list) => list?.find(([key]) => key === "data_offsets"));
        if (a && b) [a[1], b[1]] = [b[1], a[1]];
      }
      break;
    case 15: // another order of keys: stays valid
      for (const i of rng.permutation(entries.length)) entries.push(entries[i]!);
      entries.splice(0, entries.length / 2);
      break;
    case 16:
      if (entries.length > 0) entries.splice(rng.integer(entries.length), 1);
      break;
    case 17: {
      const value = pick(rng, ["{}", '{"a":"b"}', '{"a":1}', "null", '"x"', "[]", '{"a":null}']);
      entries.push(["__metadata__", raw(value)]);
      break;
    }
    case 18: // a tensor more that takes no bytes: stays valid where its place is one
      entries.push([
        pick(rng, [...texts, ...odd]),
        raw(`{"dtype":"F32","shape":[0,${pick(rng, numbers)}],"data_offsets":[0,0]}`),
      ]);
      break;
    default: {
      const text = pick(rng, [...texts, ...odd]);
      if (fields) pick(rng, fields.length > 0 ? fields : entries)[0] = text;
    }
  }
}

function changeHeader(file: Uint8Array, rng: Rng): Uint8Array {
  const { header, data } = split(file);
  let root: Json;
  try {
    root = readTree(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header));
  } catch {
    return changeBytes(file, rng);
  }
  if (root.kind !== "object") return changeBytes(file, rng);
  const tree = root as unknown as Mutable;
  const times = 1 + rng.integer(3) * Number(rng.integer(4) === 0);
  for (let i = 0; i < times; i++) changeTree(tree, rng);
  const after = pick(rng, ["", "", "", "", "", "", "", "", " ", "        ", "\n", "\0", "}", "{}"]);
  return fileOf(print(tree, rng) + after, data);
}

/** One change that knows nothing of tensors. */
function changeBytes(file: Uint8Array, rng: Rng): Uint8Array {
  const result = Uint8Array.from(file);
  const at = file.length > 0 ? rng.integer(file.length) : 0;
  const { header, data } = split(file);
  switch (rng.integer(11)) {
    case 0:
      if (file.length > 0) result[at]! ^= 1 << rng.integer(8);
      return result;
    case 1:
      if (file.length > 0) result[at] = rng.integer(256);
      return result;
    case 2: // in the header, where a bit says most
      if (header.length > 0 && file.length > 8)
        result[8 + rng.integer(header.length)]! ^= 1 << rng.integer(8);
      return result;
    case 3:
      return result.subarray(0, at);
    case 4:
      return Uint8Array.from([...result, ...new Uint8Array(1 + rng.integer(16))]);
    case 5: {
      const size = BigInt(header.length);
      const wrong = [
        0n,
        1n,
        size - 1n,
        size + 1n,
        size + 8n,
        100_000_000n,
        100_000_001n,
        2n ** 31n,
        2n ** 32n,
        2n ** 32n + size,
        2n ** 53n,
        2n ** 63n,
        2n ** 64n - 1n,
      ];
      return fileOf(header, data, BigInt.asUintN(64, pick(rng, wrong)));
    }
    case 6: {
      // A byte more or less in the header, with its length put right.
      const bytes = [...header];
      bytes.splice(rng.integer(bytes.length + 1), rng.integer(2), rng.integer(128));
      return fileOf(Uint8Array.from(bytes), data);
    }
    case 7: {
      const [from, to] = [rng.integer(header.length + 1), rng.integer(header.length + 1)];
      const part = header.subarray(Math.min(from, to), Math.max(from, to));
      const into = rng.integer(header.length + 1);
      const bytes = [...header.subarray(0, into), ...part, ...header.subarray(into)];
      return fileOf(Uint8Array.from(bytes.slice(0, 20_000)), data);
    }
    case 8: // header and data of different files
      return fileOf(split(pick(rng, bases)).header, data);
    case 9:
      return fileOf(header, data.subarray(rng.integer(data.length + 1)));
    default:
      return fileOf(header, Uint8Array.from([...data, ...data.subarray(0, rng.integer(9))]));
  }
}

/** A file made from a valid one by one to four changes. */
export function mutated(rng: Rng): Uint8Array {
  let file = pick(rng, bases);
  const times = 1 + rng.integer(4) * Number(rng.integer(3) === 0);
  for (let i = 0; i < times; i++) {
    file = rng.integer(3) > 0 ? changeHeader(file, rng) : changeBytes(file, rng);
  }
  return file;
}
