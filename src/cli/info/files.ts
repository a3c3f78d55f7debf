/** What is in a safetensors, ONNX or GGUF file. */
import type { GgufValue } from "../../io/gguf.ts";
import { readGgufHeader } from "../../io/gguf-read.ts";
import { decodeOnnx } from "../../io/onnx-read.ts";
import type { Files } from "../library.ts";
import { SafetensorsFile } from "../library.ts";
import { countBy, type Report, showBytes, showCounts, sizeOf, type Table } from "./report.ts";

interface Row {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly (number | string)[];
  readonly bytes: number | undefined;
}

/** Tensors one by one; a long list only when asked for. */
function tensorTable(rows: readonly Row[], isWanted: boolean): Table[] {
  if (!isWanted) return [];
  return [
    {
      title: `${rows.length} tensors`,
      head: ["name", "type", "shape", "bytes"],
      rows: rows.map(({ name, dtype, shape, bytes }) => [
        name,
        dtype,
        `[${shape.join(", ")}]`,
        bytes === undefined ? "?" : String(bytes),
      ]),
      align: ["left", "left", "left", "right"],
    },
  ];
}

const total = (rows: readonly Row[]): number =>
  rows.reduce((sum, { bytes }) => sum + (bytes ?? 0), 0);

const numbers = (rows: readonly Row[]): number =>
  rows.reduce((sum, { shape }) => sum + sizeOf(shape as readonly number[]), 0);

export async function safetensorsReport(
  files: Files,
  path: string,
  withTensors: boolean,
): Promise<Report> {
  const file = await SafetensorsFile.open(files, path);
  await file.close();
  const rows: Row[] = [...file.entries.values()].map(({ name, dtype, shape, bytes }) => ({
    name,
    dtype,
    shape,
    bytes,
  }));
  const metadata = Object.entries(file.metadata);
  return {
    kind: "safetensors",
    facts: [
      ["safetensors file", path],
      ["tensors", `${rows.length}, ${numbers(rows)} numbers, ${showBytes(total(rows))}`],
      ["types", showCounts(countBy(rows, ({ dtype }) => dtype)) || "none"],
      [
        "metadata",
        metadata.map(([key, text]) => `${key}=${text.slice(0, 60)}`).join(", ") || "none",
      ],
      ...(withTensors ? [] : [["", "--tensors lists them"] as const]),
    ],
    tables: tensorTable(rows, withTensors),
    data: { path, metadata: file.metadata, tensors: rows },
  };
}

/** ONNX models are read whole; protobuf holds 2 GiB. */
const maxOnnxBytes = 2 ** 31 - 1;

export async function onnxReport(
  files: Files,
  path: string,
  withTensors: boolean,
): Promise<Report> {
  const model = decodeOnnx(await files.readBytes(path, maxOnnxBytes), path);
  const { graph, opsets } = model;
  const kinds = countBy(graph.nodes, ({ op, domain }) => (domain ? `${domain}.${op}` : op));
  const rows: Row[] = graph.initializers.map(({ name, type, dims, data, external }) => ({
    name,
    dtype: type,
    shape: dims,
    bytes: external?.length ?? data.length,
  }));
  const outside = new Set(graph.initializers.flatMap(({ external }) => external?.location ?? []));
  const values = (list: typeof graph.inputs): string[][] =>
    list.map(({ name, type, shape }) => [name, type, `[${shape.join(", ")}]`]);
  return {
    kind: "onnx",
    facts: [
      ["ONNX model", path],
      ["producer", model.producer || "not said"],
      [
        "operator sets",
        Object.entries(opsets)
          .map(([domain, version]) => `${domain || "ai.onnx"} ${version}`)
          .join(", "),
      ],
      ["nodes", `${graph.nodes.length}: ${showCounts(kinds)}`],
      ["constants", `${rows.length}, ${showBytes(total(rows))}`],
      ...(outside.size > 0 ? [["other files", [...outside].join(", ")] as const] : []),
    ],
    tables: [
      { title: "Inputs", head: ["name", "type", "shape"], rows: values(graph.inputs) },
      { title: "Outputs", head: ["name", "type", "shape"], rows: values(graph.outputs) },
      ...tensorTable(rows, withTensors),
    ],
    data: {
      path,
      producer: model.producer,
      opsets,
      nodes: Object.fromEntries(kinds),
      inputs: graph.inputs,
      outputs: graph.outputs,
      tensors: rows,
    },
  };
}

function showValue({ type, value }: GgufValue): string {
  if (typeof value !== "object") return `${value}`.replaceAll("\n", "\\n").slice(0, 70);
  const first = value
    .slice(0, 3)
    .map((item) => (typeof item === "object" ? `[${item.type}]` : item))
    .join(", ")
    .slice(0, 40);
  return `${value.length} × ${type}${value.length > 0 ? `: ${first}${value.length > 3 ? ", …" : ""}` : ""}`;
}

/** Longer arrays of metadata (vocabularies) are cut in JSON; their length stands beside. */
const maxListed = 16;

export async function ggufReport(
  files: Files,
  path: string,
  withTensors: boolean,
): Promise<Report> {
  const { version, metadata, tensors } = await readGgufHeader(files, path);
  const rows: Row[] = [...tensors.values()].map(({ name, type, shape, bytes }) => ({
    name,
    dtype: type,
    shape,
    bytes,
  }));
  return {
    kind: "gguf",
    facts: [
      ["GGUF file", path],
      ["version", String(version)],
      ["tensors", `${rows.length}, ${numbers(rows)} numbers, ${showBytes(total(rows))}`],
      ["types", showCounts(countBy(rows, ({ dtype }) => dtype)) || "none"],
    ],
    tables: [
      {
        title: "Metadata",
        head: ["key", "type", "value"],
        rows: [...metadata].map(([key, value]) => [key, value.type, showValue(value)]),
      },
      ...tensorTable(rows, withTensors),
    ],
    data: {
      path,
      version,
      metadata: Object.fromEntries(
        [...metadata].map(([key, { type, value }]) => [
          key,
          typeof value === "object"
            ? { type, length: value.length, value: value.slice(0, maxListed) }
            : { type, value },
        ]),
      ),
      tensors: rows,
    },
  };
}
