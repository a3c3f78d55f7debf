/** `POST /v1/embeddings`: vectors of texts, of length 1. */
import type { JsonValue } from "../../io/json.ts";
import type { EmbeddingBody, EmbeddingsBody } from "../api-types.ts";
import { readJson } from "../body.ts";
import { UnavailableError, wrong } from "../errors.ts";
import {
  type Field,
  ignored,
  isText,
  list,
  need,
  oneOf,
  readFields,
  text,
  whole,
  wrongType,
} from "../fields.ts";
import { only } from "../generation.ts";
import { type Call, type Routes, type Service, targetOf } from "../service.ts";

const oneText = text(2 ** 22, 1);
const maxTexts = 2048;

const input: Field<readonly string[]> = {
  read: (value, param) => {
    if (isText(value)) return [oneText.read(value, param)];
    if (!Array.isArray(value)) throw wrongType(param, "a string or an array of strings", value);
    const [first] = value as readonly JsonValue[];
    only(
      typeof first !== "number" && !Array.isArray(first),
      param,
      "'input' must be a string or an array of strings: tokens are not taken.",
    );
    return list(oneText, maxTexts, 1).read(value, param);
  },
};

const fields = {
  model: need(text(256, 1)),
  input: need(input),
  encoding_format: oneOf("float", "base64"),
  dimensions: whole(1, 2 ** 20),
  user: ignored,
} as const;

/** A vector's first numbers, of length 1 again. */
function cut(vector: Float32Array, dims: number | undefined): Float32Array {
  if (dims === undefined || dims === vector.length) return vector;
  if (dims > vector.length) {
    throw wrong(
      `Invalid 'dimensions': the model's vectors have ${vector.length} numbers, but ${dims} were asked for.`,
      "dimensions",
      "integer_above_max_value",
    );
  }
  const part = vector.slice(0, dims);
  const length = Math.hypot(...part);
  return length > 0 ? part.map((x) => x / length) : part;
}

/** Little-endian float32, as clients read it. */
function base64(vector: Float32Array): string {
  const bytes = new DataView(new ArrayBuffer(4 * vector.length));
  vector.forEach((x, i) => {
    bytes.setFloat32(4 * i, x, true);
  });
  let binary = "";
  for (let i = 0; i < bytes.byteLength; i++) binary += String.fromCharCode(bytes.getUint8(i));
  return btoa(binary);
}

async function answer(call: Call, service: Service): Promise<Response> {
  const { engine, limits, embedName } = service;
  const exchange = call.get("exchange");
  const own = readFields(await readJson(call.req.raw, limits.bodyBytes, limits.bodyMs), fields);
  exchange.notes.model = own.model.slice(0, 128);
  if (own.model !== embedName) {
    const { adapter } = targetOf(service, own.model);
    only(
      adapter === undefined,
      "model",
      "Vectors are those of the base model: name it without an adapter.",
    );
    only(
      embedName === undefined,
      "model",
      `Vectors are made by '${embedName}' here: name that model.`,
    );
  }
  if (own.input.length > limits.texts) {
    throw wrong(
      `Invalid 'input': this server takes ${limits.texts} texts at once, but got ${own.input.length}.`,
      "input",
      "array_above_max_length",
    );
  }
  const { vectors, tokens } = await engine.embed(own.input);
  if (exchange.signal.aborted) throw new UnavailableError("The request was ended.");
  exchange.notes.promptTokens = tokens;
  const data = vectors.map((vector, index): EmbeddingBody => {
    const numbers = cut(vector, own.dimensions);
    const embedding = own.encoding_format === "base64" ? base64(numbers) : [...numbers];
    return { object: "embedding", index, embedding };
  });
  const body: EmbeddingsBody = {
    object: "list",
    data,
    model: own.model,
    usage: { prompt_tokens: tokens, total_tokens: tokens },
  };
  return call.json(body);
}

export const embeddingRoutes: Routes = (app, service) => {
  app.post("/v1/embeddings", (call) => answer(call, service));
};
