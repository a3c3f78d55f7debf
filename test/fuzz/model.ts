/**
 * What a safetensors file must be, written a second time and as plainly as possible: the judge of the
 * fuzzer. JSON.parse decides what is JSON; sizes are BigInt; nothing of `src/io` is used.
 */

/** JSON with what JSON.parse loses: every pair of an object, and numbers as they are written. */
export type Json =
  | { readonly kind: "object"; readonly pairs: readonly (readonly [key: string, value: Json])[] }
  | { readonly kind: "list"; readonly items: readonly Json[] }
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "number"; readonly text: string }
  | { readonly kind: "word"; readonly text: string };

export interface ModelTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface ModelFile {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, ModelTensor>;
}

export const bits: Readonly<Record<string, bigint>> = {
  BOOL: 8n,
  F4: 4n,
  F6_E2M3: 6n,
  F6_E3M2: 6n,
  U8: 8n,
  I8: 8n,
  F8_E5M2: 8n,
  F8_E4M3: 8n,
  F8_E8M0: 8n,
  F8_E4M3FNUZ: 8n,
  F8_E5M2FNUZ: 8n,
  I16: 16n,
  U16: 16n,
  F16: 16n,
  BF16: 16n,
  I32: 32n,
  U32: 32n,
  F32: 32n,
  C64: 64n,
  F64: 64n,
  I64: 64n,
  U64: 64n,
};

const largest = 2n ** 53n - 1n;
const maxDepth = 8;

/** The tree of a text that JSON.parse accepts. */
export function readTree(text: string): Json {
  JSON.parse(text);
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g)!;
  let at = 0;
  const value = (depth: number): Json => {
    const token = tokens[at++]!;
    if ((token === "{" || token === "[") && depth === maxDepth) throw new Error("nested too deep");
    if (token === "{") {
      const pairs: [string, Json][] = [];
      while (tokens[at] !== "}") {
        if (tokens[at] === ",") at++;
        const key = JSON.parse(tokens[at]!) as string;
        at += 2;
        pairs.push([key, value(depth + 1)]);
      }
      at++;
      return { kind: "object", pairs };
    }
    if (token === "[") {
      const items: Json[] = [];
      while (tokens[at] !== "]") {
        if (tokens[at] === ",") at++;
        items.push(value(depth + 1));
      }
      at++;
      return { kind: "list", items };
    }
    if (token.startsWith('"')) return { kind: "text", text: JSON.parse(token) as string };
    return { kind: /^[-\d]/.test(token) ? "number" : "word", text: token };
  };
  return value(0);
}

function refuse(why: string): never {
  throw new Error(why);
}

/** Holds for every value of the header, also for those that nothing reads. */
function checkTree(tree: Json): void {
  const whole = (text: string): void => {
    if (/\p{Surrogate}/u.test(text)) refuse("half of a surrogate pair");
  };
  if (tree.kind === "text") whole(tree.text);
  if (tree.kind === "list") tree.items.forEach(checkTree);
  if (tree.kind === "object") {
    if (new Set(tree.pairs.map(([key]) => key)).size < tree.pairs.length) refuse("a key twice");
    for (const [key, value] of tree.pairs) {
      whole(key);
      checkTree(value);
    }
  }
}

function wholeNumbers(tree: Json | undefined): bigint[] {
  if (tree?.kind !== "list") return refuse("not a list");
  return tree.items.map((item) => {
    if (item.kind !== "number" || !/^\d+$/.test(item.text)) refuse("not a whole number");
    return BigInt(item.text);
  });
}

/** @throws Error where the file breaks the format; its sentence is for the reader of a failure. */
export function readModel(file: Uint8Array): ModelFile {
  if (file.length < 8) refuse("shorter than 8 bytes");
  const size = new DataView(file.buffer, file.byteOffset).getBigUint64(0, true);
  if (size > 100_000_000n) refuse("header too large");
  if (size > BigInt(file.length - 8)) refuse("header passes the file");
  const start = 8 + Number(size);
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const text = decoder.decode(file.subarray(8, start));
  if (!/^\{.*\} *$/s.test(text)) refuse("not an object with spaces after it");
  const root = readTree(text);
  checkTree(root);
  if (root.kind !== "object") return refuse("not an object");

  const metadata = new Map<string, string>();
  const found: { name: string; dtype: string; shape: bigint[]; from: bigint; to: bigint }[] = [];
  for (const [name, value] of root.pairs) {
    if (value.kind !== "object") return refuse("an entry is no object");
    const fields = new Map(value.pairs);
    if (name === "__metadata__") {
      for (const [key, field] of value.pairs) {
        if (field.kind !== "text") return refuse("metadata is no text");
        metadata.set(key, field.text);
      }
      continue;
    }
    const dtype = fields.get("dtype");
    if (dtype?.kind !== "text" || !Object.keys(bits).includes(dtype.text)) refuse("unknown dtype");
    const shape = wholeNumbers(fields.get("shape"));
    const offsets = wholeNumbers(fields.get("data_offsets"));
    if (offsets.length !== 2) refuse("not two offsets");
    found.push({
      name,
      dtype: (dtype as { text: string }).text,
      shape,
      from: offsets[0]!,
      to: offsets[1]!,
    });
  }

  const order = (a: bigint, b: bigint): number => (a < b ? -1 : a > b ? 1 : 0);
  found.sort((a, b) => order(a.from, b.from) || order(a.to, b.to));
  let next = 0n;
  const tensors = new Map<string, ModelTensor>();
  for (const { name, dtype, shape, from, to } of found) {
    if (from !== next) refuse("a hole or an overlap");
    let total = 1n;
    for (const factor of [...shape, bits[dtype]!]) {
      total *= factor;
      if (factor > largest || total > largest) refuse("too large to count");
    }
    if (total % 8n !== 0n) refuse("not whole bytes");
    if (to - from !== total / 8n) refuse("the span is not the size");
    next = to;
    const place = file.subarray(start + Number(from), start + Number(to));
    tensors.set(name, { dtype, shape: shape.map(Number), bytes: place });
  }
  if (BigInt(start) + next !== BigInt(file.length)) refuse("bytes too few or too many");
  return { metadata, tensors };
}
