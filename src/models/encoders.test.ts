/** Encoders with their heads, and decoders as classifiers, against transformers; what they share. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  expectGradients,
  lossPattern,
  paramsByRule,
  type ShortGradient,
} from "../../test/support/by-rule.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  relativeDifference,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { valueAndGradWithAux } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import { add, cast, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { sum } from "../ir/reduce.ts";
import type { Context, TensorRecord, ValueRecord } from "../nn/index.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { families } from "./families.ts";
import { loadAnyModel, saveModel } from "./folder.ts";
import { fillFrom, readHead, readLabels } from "./heads.ts";
import type { EncoderModel } from "./model.ts";

interface Case {
  readonly config: Readonly<Record<string, unknown>>;
  readonly inputs: RawTensors;
  readonly outputs: Readonly<Record<string, RawTensor>>;
  readonly loss: number;
  readonly gradients: Readonly<Record<string, ShortGradient>>;
}

const { cases } = fixture<{ readonly cases: Readonly<Record<string, Case>> }>("encoders");
const modelOf = (config: Readonly<Record<string, unknown>>): EncoderModel =>
  families[config["model_type"] as string]!(config) as EncoderModel;
const { files } = nodeHost();

/** Rows of (B·T) that are no padding. */
function keptRows(mask: Tensor): Tensor {
  const rows = [...mask.data].flatMap((kept, i) => (kept === 1 ? [i] : []));
  return Tensor.from(rows, [rows.length], "int32");
}

/** What a fixture records of a model: its head's logits, or hidden and pooled states. */
function outputsOf(model: EncoderModel, context: Context, x: ValueRecord): Record<string, Value> {
  const options = {
    mask: cast(x["mask"]!, "bool"),
    ...(x["tokenTypes"] && { tokenTypes: x["tokenTypes"] }),
  };
  const { hidden, pooled } = model.forward(context, x["ids"]!, options);
  const { head } = model;
  const rows = x[!head || head.reads === "each" ? "kept" : head.reads]!;
  if (head) return { logits: head.forward(context, gather(hidden, rows)) };
  return { hidden: gather(hidden, rows), ...(pooled && { pooled }) };
}

function inputsOf(raw: RawTensors): TensorRecord {
  const inputs = tensorsOf(raw);
  const [rows, length] = inputs["ids"]!.shape as [number, number];
  const kept = keptRows(inputs["mask"]!);
  const first = Array.from({ length: rows }, (_, i) => i * length);
  const last = first.map((start) =>
    Math.max(...Array.from(kept.numbers()).filter((row) => row < start + length)),
  );
  return {
    ...inputs,
    kept,
    first: Tensor.from(first, [rows], "int32"),
    last: Tensor.from(last, [rows], "int32"),
  };
}

let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-encoders-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

describe.each(Object.entries(cases))("%s", (name, record) => {
  const model = modelOf(record.config);
  const params = paramsByRule(model);

  test("names the parameters of transformers", () => {
    expect(Object.keys(params).sort()).toEqual(Object.keys(record.gradients).sort());
  });

  test("gives transformers' outputs and gradients, padding masked", async () => {
    const inputs = inputsOf(record.inputs);
    const [loss, outputs, gradients] = await evaluate<
      readonly [Tensor, TensorRecord, TensorRecord]
    >(
      await parityBackend(),
      (p: ValueRecord, x: ValueRecord) =>
        valueAndGradWithAux((q: ValueRecord) => {
          const made = outputsOf(model, model.context(q), x);
          const losses = Object.values(made).map((value) =>
            sum(mul(value, lossPattern(value.shape as number[]))),
          );
          return [losses.reduce((a, b) => add(a, b)), made] as const;
        })(p),
      params,
      inputs,
    );
    for (const [key, raw] of Object.entries(record.outputs)) {
      expect(relativeDifference(outputs[key]!, tensorOf(raw)), key).toBeLessThan(1e-5);
    }
    expect(Math.abs(loss.item() - record.loss)).toBeLessThan(1e-4 * Math.abs(record.loss) + 1e-4);
    expectGradients(gradients, record.gradients, 1e-4);
  });

  test("saves and loads to the same numbers and configuration", async () => {
    const path = join(scratch, name);
    await saveModel(files, path, model, params);
    const again = await loadAnyModel(files, path);
    expect(again.params).toEqual(params);
    expect({ ...again.model.config }).toEqual({ ...model.config });
    expect(again.model.config["architectures"]).toEqual(record.config["architectures"]);
  });
});

describe("encoders", () => {
  test("give a text the same vectors however long its padding is, and whatever stands there", async () => {
    const record = cases["bert"]!;
    const model = modelOf(record.config);
    const params = paramsByRule(model);
    const vectors = async (length: number, filler: number): Promise<Tensor> => {
      const ids = new Int32Array(2 * length).fill(filler);
      ids.set([5, 6, 7], 0);
      ids.set([8, 9, 10], length);
      const kept = Int32Array.from(ids, (_, i) => (i % length < 3 ? 1 : 0));
      return evaluate<Tensor>(
        await parityBackend(),
        (p: ValueRecord, x: Value, m: Value, rows: Value) =>
          model.forward(model.context(p), x, { mask: cast(m, "bool"), rows }).hidden,
        params,
        Tensor.from(ids, [2, length], "int32"),
        Tensor.from(kept, [2, length], "int32"),
        keptRows(Tensor.from(kept, [2, length], "int32")),
      );
    };
    const short = await vectors(4, 0);
    expect(relativeDifference(await vectors(16, 0), short)).toBeLessThan(1e-6);
    expect(relativeDifference(await vectors(16, 20), short)).toBeLessThan(1e-6);
    // The mask is what does it.
    const unmasked = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, x: Value) => model.forward(model.context(p), x).hidden,
      params,
      Tensor.from([5, 6, 7, 20, 8, 9, 10, 20], [2, 4], "int32"),
    );
    const first = unmasked.data.slice(0, 16) as Float32Array;
    expect(
      relativeDifference(Tensor.from(first), Tensor.from(short.data.slice(0, 16) as Float32Array)),
    ).toBeGreaterThan(1e-3);
  });

  test("keep the body and get a new head", () => {
    const words = modelOf(cases["bert-masked-lm"]!.config);
    const from = paramsByRule(words);
    const labelled = {
      ...cases["bert-sequence"]!.config,
      id2label: { 0: "a", 1: "b" },
    };
    const { model, params, fresh } = fillFrom(modelOf(labelled), from, new Rng(3));
    expect(fresh).toEqual([
      "bert.pooler.dense.weight",
      "bert.pooler.dense.bias",
      "classifier.weight",
      "classifier.bias",
    ]);
    expect(model.head!.labels).toEqual(["a", "b"]);
    const name = "bert.encoder.layer.1.output.dense.weight";
    expect(params[name]).toBe(from[name]);
    // From a model without a head, whose paths are shorter.
    const bare = modelOf(cases["bert"]!.config);
    const other = fillFrom(modelOf(labelled), paramsByRule(bare), new Rng(3));
    expect(other.fresh).toEqual(["classifier.weight", "classifier.bias"]);
    // And back to none.
    const back = fillFrom(modelOf(cases["bert"]!.config), other.params, new Rng(3));
    expect(back.fresh).toEqual([]);
  });

  test("refuse what they do not know, in a sentence", () => {
    const { config } = cases["bert"]!;
    expect(() => modelOf({ ...config, architectures: ["BertForNextSentencePrediction"] })).toThrow(
      'bert: architecture "BertForNextSentencePrediction" is not supported — BertModel, BertForMaskedLM,',
    );
    expect(() => modelOf({ ...config, position_embedding_type: "relative_key" })).toThrow(
      'bert: position_embedding_type "relative_key" is not supported.',
    );
    expect(() => modelOf({ ...config, num_attention_heads: 3 })).toThrow(
      "bert: dModel 16 must be a multiple of nHeads 3.",
    );
    expect(() => readLabels("bert", { id2label: { 0: "a", 2: "b" } })).toThrow(
      'bert: "id2label" must map 0 to 1 to names, 1 has null.',
    );
    expect(() =>
      readHead(
        "bert",
        { architectures: ["A"], problem_type: "ranking" },
        { A: "sequence-classification" },
      ),
    ).toThrow('bert: problem_type "ranking" is not supported');
    expect(() => modelOf({ ...cases["roberta"]!.config, max_position_embeddings: 2 })).toThrow(
      "max_position_embeddings must be at least 3, got 2.",
    );
  });
});
