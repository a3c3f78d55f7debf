/**
 * How far every recorded architecture is from transformers: the outputs and gradients of the fixtures, as
 * the tests of `src/models` compare them, gathered for the table in docs/models.md.
 */
import { readdirSync } from "node:fs";
import { valueAndGradWithAux } from "../../src/autodiff/grad.ts";
import { evaluate } from "../../src/backend/compile.ts";
import { add, cast, div, mul } from "../../src/ir/elementwise.ts";
import type { Value } from "../../src/ir/graph.ts";
import { gather } from "../../src/ir/indexing.ts";
import { reshape, slice } from "../../src/ir/layout.ts";
import { norm, sum } from "../../src/ir/reduce.ts";
import { type Clip, clipLogits } from "../../src/models/clip.ts";
import { families } from "../../src/models/families.ts";
import type {
  EncoderModel,
  LanguageModel,
  ModelKind,
  PretrainedModel,
  VisionModel,
} from "../../src/models/model.ts";
import type { T5 } from "../../src/models/t5.ts";
import {
  type Context,
  crossEntropy,
  type TensorRecord,
  type ValueRecord,
} from "../../src/nn/index.ts";
import { Rng } from "../../src/tensor/rng.ts";
import type { StaticShape } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import { fnv1a, lossPattern, numbersByRule, type ShortGradient } from "./by-rule.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  relativeDifference,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "./fixture.ts";
import { ruleWeights } from "./rule-weights.ts";

type Json = Readonly<Record<string, unknown>>;

/** One recorded model. */
export interface ModelNumbers {
  /** The `model_type` of its config.json. */
  readonly family: string;
  readonly kind: ModelKind;
  /** It carries a state of its own between tokens. */
  readonly isRecurrent: boolean;
  readonly record: string;
  /** Of all outputs, max |difference| / max |reference|. */
  readonly outputs: number;
  /** The same of the gradient of each parameter; the largest. */
  readonly gradients: number;
}

/** A gradient as it is recorded: whole, or numbers at some places. */
interface Recorded {
  readonly largest: number;
  readonly places: readonly (readonly [place: number, value: number])[];
}

interface Case {
  readonly config: Json;
  readonly inputs: RawTensors;
  readonly pixels?: StaticShape;
  readonly outputs?: RawTensors;
  readonly logits?: RawTensor;
  readonly gradients: Readonly<Record<string, ShortGradient>>;
}

interface DecoderRecord {
  readonly config: Json;
  readonly normMean: number;
  readonly inputs: { readonly ids: RawTensor };
  readonly logits: RawTensor;
  readonly gradients: Readonly<
    Record<string, { readonly largest: number; readonly at: number[]; readonly values: number[] }>
  >;
}

/** A differentiable pass: the loss of the record, and its outputs by name. */
type Pass = (context: Context, x: ValueRecord) => readonly [loss: Value, outputs: ValueRecord];

async function measure(
  record: string,
  model: PretrainedModel,
  values: TensorRecord,
  inputs: TensorRecord,
  pass: Pass,
  expected: RawTensors,
  gradients: Readonly<Record<string, Recorded>>,
): Promise<ModelNumbers> {
  const kinds = new Map([...model.slots()].map(([path, { kind }]) => [path, kind]));
  const part = (kind: string): TensorRecord =>
    Object.fromEntries(Object.entries(values).filter(([path]) => kinds.get(path) === kind));
  const [, made, own] = await evaluate<readonly [Tensor, TensorRecord, TensorRecord]>(
    await parityBackend(),
    (p: ValueRecord, s: ValueRecord, x: ValueRecord) =>
      valueAndGradWithAux((q: ValueRecord) => model.apply(q, s, (context) => pass(context, x))[0])(
        p,
      ),
    part("parameter"),
    part("state"),
    inputs,
  );
  const outputs = Object.entries(expected).map(([name, raw]) => {
    const wanted = tensorOf(raw);
    return relativeDifference(made[name]!.reshape(wanted.shape), wanted);
  });
  // What is zero in exact arithmetic, as the bias of keys, is noise on both sides.
  const top = 1e-3 * Math.max(...Object.values(gradients).map(({ largest }) => largest));
  const slopes = Object.entries(gradients).map(([name, { largest, places }]) => {
    const numbers = own[name]!.numbers();
    const off = places.map(([place, value]) => Math.abs(numbers[place]! - value));
    return Math.max(...off) / Math.max(largest, top);
  });
  return {
    family: String(model.config["model_type"]),
    kind: model.kind,
    isRecurrent: (model as LanguageModel).stateShapes !== undefined,
    record,
    outputs: Math.max(...outputs),
    gradients: Math.max(...slopes),
  };
}

const modelOf = (config: Json): PretrainedModel =>
  families[config["model_type"] as string]!(config);

/** Weights and state by the rule of scripts/parity/by_rule.py. */
function valuesByRule(model: PretrainedModel): TensorRecord {
  const value = (path: string, kind: string, shape: StaticShape): Tensor => {
    const numbers = numbersByRule(path, shape);
    if (kind !== "state") return numbers;
    if (path.endsWith("num_batches_tracked")) return Tensor.from([fnv1a(path) % 100], [], "int32");
    if (!path.endsWith("running_var")) return numbers;
    return Tensor.from(
      Float32Array.from(numbers.data, (x) => x + 1),
      shape,
    );
  };
  return Object.fromEntries(
    [...model.slots()].map(([path, { kind, shape }]) => [path, value(path, kind, shape)]),
  );
}

/** Rows of (B·T) that heads read: without padding, the first of each text, the last. */
function rowsOf(ids: Tensor, mask: Tensor): TensorRecord {
  const [rows, length] = ids.shape as [number, number];
  const kept = [...mask.data].flatMap((is, i) => (is === 1 ? [i] : []));
  const first = Array.from({ length: rows }, (_, i) => i * length);
  const last = first.map((start) => Math.max(...kept.filter((row) => row < start + length)));
  const tensor = (list: number[]): Tensor => Tensor.from(list, [list.length], "int32");
  return { kept: tensor(kept), first: tensor(first), last: tensor(last) };
}

const unit = (x: Value): Value => div(x, norm(x, -1, { keepDims: true }));

function outputsOf(model: PretrainedModel, context: Context, x: ValueRecord): ValueRecord {
  const mask = x["mask"] && cast(x["mask"], "bool");
  if (model.kind === "seq2seq") {
    const t5 = model as T5;
    const hidden = t5.encode(context, x["source"]!, { mask: mask! });
    const [rows, length] = x["source"]!.shape as [number, number];
    const source = t5.crossed(context, hidden, rows, length);
    return { logits: t5.decode(context, x["target"]!, source, { mask: mask! }).logits };
  }
  if (model.kind === "vision-text") {
    const clip = model as Clip;
    const images = clip.embedImages(context, x["pixels"]!);
    const texts = clip.embedTexts(context, x["ids"]!, { mask: mask! });
    const logits = clipLogits(clip, context, images, texts);
    return { images: unit(images), texts: unit(texts), logits };
  }
  if (model.kind === "vision") {
    const { hidden, pooled, logits } = (model as VisionModel).forward(context, x["pixels"]!);
    return logits ? { logits } : { hidden, pooled };
  }
  const encoder = model as EncoderModel;
  const { hidden, pooled } = encoder.forward(context, x["ids"]!, {
    mask: mask!,
    ...(x["tokenTypes"] && { tokenTypes: x["tokenTypes"] }),
  });
  const { head } = encoder;
  const rows = x[!head || head.reads === "each" ? "kept" : head.reads]!;
  if (head) return { logits: head.forward(context, gather(hidden, rows)) };
  return { hidden: gather(hidden, rows), ...(pooled && { pooled }) };
}

/** What the losses of these records are of: every output times numbers by rule. */
function patterned(outputs: ValueRecord): Value {
  return Object.values(outputs)
    .map((value) => sum(mul(value, lossPattern(value.shape as number[]))))
    .reduce((a, b) => add(a, b));
}

const shortPlaces = (
  gradients: Case["gradients"],
  sizes: (name: string) => number,
): Record<string, Recorded> =>
  Object.fromEntries(
    Object.entries(gradients).map(([name, [, largest, ...values]]) => [
      name,
      {
        largest,
        places: values.map((value, k) => [(k * 7919 + 13) % sizes(name), value] as const),
      },
    ]),
  );

async function ofCase(name: string, record: Case): Promise<ModelNumbers> {
  const model = modelOf(record.config);
  const values = valuesByRule(model);
  const inputs = tensorsOf(record.inputs);
  if (inputs["mask"] && inputs["ids"]) Object.assign(inputs, rowsOf(inputs["ids"], inputs["mask"]));
  if (record.pixels) {
    const { data, shape } = numbersByRule("pixels", record.pixels);
    inputs["pixels"] = new Tensor("float32", shape, data.map((x) => 4 * x) as typeof data);
  }
  const pass: Pass = (context, x) => {
    if (model.kind === "causal-lm") return nextToken(model as LanguageModel, context, x["ids"]!);
    const outputs = outputsOf(model, context, x);
    return [patterned(outputs), outputs];
  };
  const expected = record.outputs ?? { logits: record.logits! };
  const places = shortPlaces(record.gradients, (path) => values[path]!.size);
  return measure(name, model, values, inputs, pass, expected, places);
}

/** The mean loss of each token's successor, ids (B, T + 1). */
function nextToken(
  model: LanguageModel,
  context: Context,
  ids: Value,
): readonly [Value, ValueRecord] {
  const { logits } = model.forward(context, slice(ids, 1, 0, -1));
  return [crossEntropy(logits, reshape(slice(ids, 1, 1), [-1])), { logits }];
}

const languagePass =
  (model: LanguageModel): Pass =>
  (context, x) =>
    nextToken(model, context, x["ids"]!);

async function ofDecoder(name: string): Promise<ModelNumbers> {
  const record = fixture<DecoderRecord>(`decoders/${name}`);
  const model = modelOf(record.config) as LanguageModel;
  // transformers calls the published embed_out of GPT-NeoX lm_head.
  const nameOf = (path: string): string => path.replace(/^embed_out\./, "lm_head.");
  const values = ruleWeights(model.init(new Rng(0)).params, record.normMean, nameOf);
  const gradients = Object.fromEntries(
    Object.keys(values).map((path): [string, Recorded] => {
      const { largest, at, values: found } = record.gradients[nameOf(path)]!;
      return [path, { largest, places: at.map((place, i) => [place, found[i]!] as const) }];
    }),
  );
  const inputs = tensorsOf(record.inputs);
  const expected = { logits: record.logits };
  return measure(name, model, values, inputs, languagePass(model), expected, gradients);
}

async function ofTraining(name: string, family: string): Promise<ModelNumbers> {
  const record = fixture<TrainingRecord>(name);
  const model = modelOf({ ...record.config, model_type: family }) as LanguageModel;
  const gradients = Object.fromEntries(
    Object.entries(record.gradients).map(([path, { data }]): [string, Recorded] => [
      path,
      {
        largest: Math.max(...data.map(Math.abs)),
        places: data.map((value, place) => [place, value] as const),
      },
    ]),
  );
  const expected = { logits: record.logits };
  const [values, inputs] = [tensorsOf(record.weights), tensorsOf(record.inputs)];
  return measure(name, model, values, inputs, languagePass(model), expected, gradients);
}

/** Files of cases, and of one decoder each. */
const collections = ["encoders", "vision", "t5", "mamba", "mamba2"] as const;
const decodersFolder = new URL("../parity/decoders", import.meta.url);

/** The numbers of every recorded model. */
export async function modelNumbers(): Promise<ModelNumbers[]> {
  const found = [await ofTraining("gpt2-train", "gpt2"), await ofTraining("llama-train", "llama")];
  const names = readdirSync(decodersFolder).sort();
  for (const name of names) found.push(await ofDecoder(name.replace(/\.json$/, "")));
  for (const file of collections) {
    const { cases } = fixture<{ readonly cases: Readonly<Record<string, Case>> }>(file);
    for (const [name, record] of Object.entries(cases)) {
      found.push(await ofCase(`${file}, ${name}`, record));
    }
  }
  return found;
}
