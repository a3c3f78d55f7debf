/** ViT, CLIP and ResNet against transformers. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  expectGradients,
  fnv1a,
  lossPattern,
  numbersByRule,
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
import { add, cast, div, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { norm, sum } from "../ir/reduce.ts";
import type { Context, Module, TensorRecord, ValueRecord } from "../nn/index.ts";
import type { StaticShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type Clip, clipLogits } from "./clip.ts";
import { families } from "./families.ts";
import { loadAnyModel, saveModel } from "./folder.ts";
import type { EncoderModel, PretrainedModel, VisionModel } from "./model.ts";

interface Measured {
  readonly outputs: Readonly<Record<string, RawTensor>>;
  readonly loss: number;
  readonly gradients: Readonly<Record<string, ShortGradient>>;
}

interface Case extends Measured {
  readonly config: Readonly<Record<string, unknown>>;
  readonly inputs: RawTensors;
  readonly pixels?: StaticShape;
  /** In training, and the running statistics after it. */
  readonly training?: Measured & { readonly state: RawTensors };
}

const { cases } = fixture<{ readonly cases: Readonly<Record<string, Case>> }>("vision");
const modelOf = (config: Readonly<Record<string, unknown>>): PretrainedModel =>
  families[config["model_type"] as string]!(config);
const { files } = nodeHost();

/** Parameters and state: variances about 1, counts by the name. */
function valuesByRule(model: Module): { params: TensorRecord; state: TensorRecord } {
  const params: TensorRecord = {};
  const state: TensorRecord = {};
  for (const [path, { kind, shape }] of model.slots()) {
    const numbers = numbersByRule(path, shape);
    if (kind === "parameter") params[path] = numbers;
    else if (path.endsWith("num_batches_tracked")) {
      state[path] = Tensor.from([fnv1a(path) % 100], [], "int32");
    } else if (path.endsWith("running_var")) {
      // In single precision, as the record adds it.
      state[path] = Tensor.from(
        Float32Array.from(numbers.data, (x) => x + 1),
        shape,
      );
    } else state[path] = numbers;
  }
  return { params, state };
}

/** Rows of (B·T) that are no padding. */
function keptRows(mask: Tensor): Tensor {
  const rows = [...mask.data].flatMap((kept, i) => (kept === 1 ? [i] : []));
  return Tensor.from(rows, [rows.length], "int32");
}

const unit = (x: Value): Value => div(x, norm(x, -1, { keepDims: true }));

/** What a fixture records of a model. */
function outputsOf(model: PretrainedModel, context: Context, x: ValueRecord): ValueRecord {
  const mask = x["mask"] && cast(x["mask"], "bool");
  if (model.kind === "vision-text") {
    const clip = model as Clip;
    const images = clip.embedImages(context, x["pixels"]!);
    const texts = clip.embedTexts(context, x["ids"]!, { mask: mask! });
    const logits = clipLogits(clip, context, images, texts);
    return { images: unit(images), texts: unit(texts), logits };
  }
  if (model.kind === "encoder") {
    const { hidden, pooled } = (model as EncoderModel).forward(context, x["ids"]!, { mask: mask! });
    return { hidden: gather(hidden, x["kept"]!), pooled: pooled! };
  }
  const { hidden, pooled, logits } = (model as VisionModel).forward(context, x["pixels"]!);
  return logits ? { logits } : { hidden, pooled };
}

function inputsOf(record: Case): TensorRecord {
  const inputs = tensorsOf(record.inputs);
  if (inputs["mask"]) inputs["kept"] = keptRows(inputs["mask"]);
  if (record.pixels) {
    const { data, shape } = numbersByRule("pixels", record.pixels);
    inputs["pixels"] = new Tensor("float32", shape, data.map((x) => 4 * x) as typeof data);
  }
  return inputs;
}

async function expectMeasured(record: Case, expected: Measured, training: boolean) {
  const model = modelOf(record.config);
  const { params, state } = valuesByRule(model);
  const [loss, [outputs, newState], gradients] = await evaluate<
    readonly [Tensor, readonly [TensorRecord, TensorRecord], TensorRecord]
  >(
    await parityBackend(),
    (p: ValueRecord, s: ValueRecord, x: ValueRecord) =>
      valueAndGradWithAux((q: ValueRecord) => {
        const [made, after] = model.apply(q, s, (context) => outputsOf(model, context, x), {
          training,
        });
        const losses = Object.values(made).map((value) =>
          sum(mul(value, lossPattern(value.shape as number[]))),
        );
        return [losses.reduce((a, b) => add(a, b)), [made, after] as const] as const;
      })(p),
    params,
    state,
    inputsOf(record),
  );
  for (const [key, raw] of Object.entries(expected.outputs)) {
    expect(relativeDifference(outputs[key]!, tensorOf(raw)), key).toBeLessThan(1e-5);
  }
  expect(Math.abs(loss.item() - expected.loss)).toBeLessThan(1e-4 * Math.abs(expected.loss) + 1e-4);
  expectGradients(gradients, expected.gradients, 1e-4);
  return newState;
}

let scratch = "";
// With this the folders stay, for `scripts/parity/vision.py check`.
const kept = process.env["PLASTICITY_KEEP_VISION"];
beforeAll(async () => {
  scratch = kept ?? (await mkdtemp(join(tmpdir(), "plasticity-vision-")));
});
afterAll(async () => {
  if (!kept) await rm(scratch, { recursive: true });
});

describe.each(Object.entries(cases))("%s", (name, record) => {
  const model = modelOf(record.config);

  test("names the parameters of transformers' checkpoints", () => {
    const { params } = valuesByRule(model);
    expect(Object.keys(params).sort()).toEqual(Object.keys(record.gradients).sort());
  });

  test("gives transformers' outputs and gradients", async () => {
    await expectMeasured(record, record, false);
  });

  test("saves and loads to the same numbers and configuration", async () => {
    const path = join(scratch, name);
    const { params, state } = valuesByRule(model);
    await saveModel(files, path, model, { ...params, ...state });
    const again = await loadAnyModel(files, path);
    expect(again.params).toEqual({ ...params, ...state });
    expect({ ...again.model.config }).toEqual({ ...model.config });
    expect(again.model.config["architectures"]).toEqual(record.config["architectures"]);
  });
});

describe.each(Object.entries(cases).filter(([, { training }]) => training))("%s", (_, record) => {
  test("moves the running statistics in training", async () => {
    const after = await expectMeasured(record, record.training!, true);
    expect(Object.keys(after).sort()).toEqual(Object.keys(record.training!.state).sort());
    for (const [path, raw] of Object.entries(record.training!.state)) {
      expect(relativeDifference(after[path]!, tensorOf(raw)), path).toBeLessThan(1e-5);
    }
  });
});

describe("models of pictures", () => {
  test("refuse pictures of another size, with both sizes", async () => {
    const model = modelOf(cases["vit"]!.config) as VisionModel;
    const { params } = valuesByRule(model);
    const run = evaluate(
      await parityBackend(),
      (p: ValueRecord, x: Value) => model.forward(model.context(p), x).pooled,
      params,
      Tensor.zeros([2, 3, 9, 8], "float32"),
    );
    await expect(run).rejects.toThrow(
      "vit: needs pictures (B, 3, 8, 8), got (2, 3, 9, 8) — resize and crop them to the size of the model.",
    );
  });

  test.each([
    [
      { model_type: "vit", image_size: [224] },
      'vit: "image_size" must be one or two whole numbers',
    ],
    [{ model_type: "vit", image_size: 8, patch_size: 16 }, "vit: patch_size 16×16 is larger than"],
    [
      { model_type: "vit", num_attention_heads: 5 },
      "vit: dModel 768 must be a multiple of nHeads 5",
    ],
    [{ model_type: "vit", head_dim: 32 }, "vit: head_dim 32 is not supported"],
    [{ model_type: "clip", architectures: ["CLIPSegModel"] }, 'architecture "CLIPSegModel" is not'],
    [{ model_type: "clip", text_config: 3 }, 'clip: "text_config" must be an object, got 3.'],
    [
      { model_type: "clip_vision_model", image_size: [224, 112] },
      "image_size 224×112 is not supported, only squares are.",
    ],
    [{ model_type: "resnet", depths: [1, 2] }, "hidden_sizes has 4 stages and depths 2"],
    [{ model_type: "resnet", depths: [1e9] }, 'resnet: "depths" must list 1 to 16 whole numbers'],
    [{ model_type: "resnet", layer_type: "wide" }, 'resnet: layer_type "wide" is not supported.'],
  ])("refuse %j", (config, sentence) => {
    expect(() => modelOf(config as Readonly<Record<string, unknown>>)).toThrow(sentence);
  });

  test("read CLIP's second text configuration, which older folders have, as the one that counts", () => {
    const config = {
      ...cases["clip"]!.config,
      text_config_dict: { vocab_size: 7, hidden_size: 16, num_attention_heads: 2 },
    };
    expect((modelOf(config) as Clip).text).toMatchObject({ vocabSize: 7, maxPositions: 77 });
  });
});
