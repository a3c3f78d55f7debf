import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
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
import { Seq2SeqDecoder } from "../infer/seq2seq.ts";
import { cast, mul } from "../ir/elementwise.ts";
import { sum } from "../ir/reduce.ts";
import type { TensorRecord, ValueRecord } from "../nn/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { families } from "./families.ts";
import { loadAnyModel, saveModel } from "./folder.ts";
import type { T5 } from "./t5.ts";
import { relativeBucket } from "./t5-layers.ts";

interface Case {
  readonly config: Readonly<Record<string, unknown>>;
  readonly inputs: RawTensors;
  readonly logits: RawTensor;
  readonly encoded: RawTensor;
  readonly loss: number;
  readonly gradients: Readonly<Record<string, ShortGradient>>;
  readonly answers: readonly (readonly number[])[];
}

const { buckets, cases } = fixture<{
  readonly buckets: Readonly<Record<string, RawTensor>>;
  readonly cases: Readonly<Record<string, Case>>;
}>("t5");
const { files } = nodeHost();
const modelOf = (config: Readonly<Record<string, unknown>>): T5 =>
  families[config["model_type"] as string]!(config) as T5;

test("distances fall into transformers' buckets", () => {
  const ours = (isBothWays: boolean, count: number, most: number): number[] =>
    Array.from({ length: 601 }, (_, i) => relativeBucket(i - 300, isBothWays, count, most));
  expect(ours(true, 32, 128)).toEqual(buckets["both"]!.data);
  expect(ours(false, 32, 128)).toEqual(buckets["past"]!.data);
  expect(ours(true, 8, 12)).toEqual(buckets["bothSmall"]!.data);
  expect(ours(false, 8, 12)).toEqual(buckets["pastSmall"]!.data);
});

describe.each(Object.entries(cases))("%s", (name, record) => {
  const model = modelOf(record.config);
  const params = paramsByRule(model);

  test("names the parameters of transformers", () => {
    expect(Object.keys(params).sort()).toEqual(Object.keys(record.gradients).sort());
  });

  test("gives transformers' logits and gradients, padding of the source masked", async () => {
    const [loss, logits, gradients] = await evaluate<readonly [Tensor, Tensor, TensorRecord]>(
      await parityBackend(),
      (p: ValueRecord, x: ValueRecord) =>
        valueAndGradWithAux((q: ValueRecord) => {
          const context = model.context(q);
          const mask = cast(x["mask"]!, "bool");
          const hidden = model.encode(context, x["source"]!, { mask });
          const [rows, length] = x["source"]!.shape as [number, number];
          const source = model.crossed(context, hidden, rows, length);
          const made = model.decode(context, x["target"]!, source, { mask }).logits;
          return [sum(mul(made, lossPattern(made.shape as number[]))), made] as const;
        })(p),
      params,
      tensorsOf(record.inputs),
    );
    const expected = tensorOf(record.logits).reshape(logits.shape);
    expect(relativeDifference(logits, expected)).toBeLessThan(1e-5);
    expect(Math.abs(loss.item() - record.loss)).toBeLessThan(1e-4 * Math.abs(record.loss) + 1e-4);
    expectGradients(gradients, record.gradients, 1e-4);
  });

  test("answers as transformers' greedy search, sources of different lengths together", async () => {
    const { source, mask } = tensorsOf(record.inputs);
    const length = source!.shape[1]!;
    const sources = [0, 1, 2].map((row) =>
      Int32Array.from(source!.data.slice(row * length, (row + 1) * length) as Int32Array).filter(
        (_, i) => mask!.data[row * length + i] === 1,
      ),
    );
    const decoder = new Seq2SeqDecoder(model, params, await parityBackend());
    try {
      const answers = await decoder.generate(sources, { maxNewTokens: 12 });
      const expected = record.answers.map((row) => {
        const end = row.indexOf(model.endId);
        return end < 0 ? row : row.slice(0, end);
      });
      expect(answers.map(({ tokens }) => [...tokens])).toEqual(expected);
    } finally {
      await decoder.release();
    }
  });

  test("saves and loads to the same numbers and configuration", async () => {
    const path = await mkdtemp(join(tmpdir(), "plasticity-t5-"));
    try {
      await saveModel(files, path, model, params);
      const again = await loadAnyModel(files, path);
      expect(again.params).toEqual(params);
      expect(again.model.config).toEqual(expect.objectContaining({ ...model.config }));
    } finally {
      await rm(path, { recursive: true });
    }
  });

  test(`is a ${name} of the size that its configuration says`, () => {
    expect(model.sizes).toMatchObject({ vocabSize: 37, dModel: 16, headDim: 6, nHeads: 2 });
  });
});

test("refuses a feed-forward layer that it does not know", () => {
  const { config } = cases["t5"]!;
  expect(() => modelOf({ ...config, feed_forward_proj: "gated-silu" })).toThrow(
    't5: feed_forward_proj "gated-silu" is not supported — relu and gated-gelu are.',
  );
});
