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
import { Seq2SeqDecoder, type Seq2SeqOptions } from "../infer/seq2seq.ts";
import { cast, mul } from "../ir/elementwise.ts";
import { sum } from "../ir/reduce.ts";
import type { TensorRecord, ValueRecord } from "../nn/index.ts";
import { Tensor } from "../tensor/tensor.ts";
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
  readonly beams: {
    /** The token that ends these answers. */
    readonly end: number;
    readonly searches: Readonly<Record<string, Search>>;
  };
}

interface Search {
  readonly options: Readonly<Record<string, number | boolean | string>>;
  readonly answers: readonly (readonly number[])[];
  readonly scores: RawTensor;
}

const { buckets, cases } = fixture<{
  readonly buckets: Readonly<Record<string, RawTensor>>;
  readonly cases: Readonly<Record<string, Case>>;
}>("t5");
const { files } = nodeHost();
const modelOf = (config: Readonly<Record<string, unknown>>): T5 =>
  families[config["model_type"] as string]!(config) as T5;

/** The three sources without their padding. */
function sourcesOf({ inputs }: Case): Int32Array<ArrayBuffer>[] {
  const { source, mask } = tensorsOf(inputs);
  const length = source!.shape[1]!;
  return [0, 1, 2].map((row) =>
    Int32Array.from(source!.data.slice(row * length, (row + 1) * length) as Int32Array).filter(
      (_, i) => mask!.data[row * length + i] === 1,
    ),
  );
}

const beamOptions = ({
  num_beams,
  length_penalty,
  early_stopping,
}: Search["options"]): Seq2SeqOptions => ({
  numBeams: num_beams as number,
  ...(length_penalty !== undefined && { lengthPenalty: length_penalty as number }),
  ...(early_stopping !== undefined && { earlyStopping: early_stopping as boolean | "never" }),
});

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
    const sources = sourcesOf(record);
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

  test("answers as transformers' beam search, with its scores", async () => {
    const { end, searches } = record.beams;
    const sources = sourcesOf(record);
    const ending = modelOf({ ...record.config, eos_token_id: end });
    const decoder = new Seq2SeqDecoder(ending, params, await parityBackend());
    try {
      for (const [kind, { options, answers, scores }] of Object.entries(searches)) {
        const made = await decoder.generate(sources, { maxNewTokens: 9, ...beamOptions(options) });
        const expected = answers.map((row) => {
          const at = row.indexOf(end);
          return at < 0 ? row : row.slice(0, at);
        });
        expect(
          made.map(({ tokens }) => [...tokens]),
          kind,
        ).toEqual(expected);
        const reasons = answers.map((row) => (row.includes(end) ? "stop" : "length"));
        expect(
          made.map(({ finishReason }) => finishReason),
          kind,
        ).toEqual(reasons);
        const ours = Tensor.from(
          made.map(({ score }) => score!),
          [sources.length],
        );
        expect(relativeDifference(ours, tensorOf(scores)), kind).toBeLessThan(1e-5);
        // Alone as among others.
        const [alone] = await decoder.generate([sources[2]!], {
          ...{ maxNewTokens: 9, ...beamOptions(options) },
        });
        expect([...alone!.tokens], kind).toEqual(expected[2]);
      }
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
