/** Where adapters stand in the blocks of every architecture. */
import { describe, expect, it } from "vitest";
import { tinyConfigs } from "../../test/support/tiny-encoder.ts";
import { spec, trace } from "../backend/compile.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { sum } from "../ir/reduce.ts";
import { reachable } from "../ir/rewrite.ts";
import type { Module, Place, SiteFn, ValueRecord } from "../nn/module.ts";
import { CausalEncoder } from "./causal-encoder.ts";
import { families } from "./families.ts";
import type {
  EncoderModel,
  LanguageModel,
  PretrainedModel,
  Seq2SeqModel,
  VisionModel,
  VisionTextModel,
} from "./model.ts";

const llama = {
  ...{ vocab_size: 20, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 16 },
  ...{ rms_norm_eps: 1e-5, tie_word_embeddings: true, head_dim: 4 },
};
const tower = {
  ...{ hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2 },
  ...{ hidden_act: "quick_gelu", layer_norm_eps: 1e-5 },
};
const configs: Record<string, Record<string, unknown>> = {
  gpt2: { vocab_size: 20, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 16 },
  llama,
  mistral: { ...llama, sliding_window: 3 },
  qwen3: llama,
  gemma3_text: { ...llama, sliding_window: 3, sliding_window_pattern: 2 },
  phi3: llama,
  gpt_neox: { ...llama, rotary_pct: 1 },
  bert: tinyConfigs["bert"]!,
  roberta: { ...tinyConfigs["bert"]!, architectures: ["RobertaModel"], pad_token_id: 1 },
  distilbert: {
    ...{ architectures: ["DistilBertModel"], vocab_size: 20, dim: 16, n_layers: 2, n_heads: 2 },
    ...{ hidden_dim: 24, max_position_embeddings: 16 },
  },
  t5: tinyConfigs["t5"]!,
  vit: {
    ...{ architectures: ["ViTModel"], hidden_size: 24, num_hidden_layers: 2 },
    ...{ num_attention_heads: 3, intermediate_size: 48, image_size: 16, patch_size: 4 },
  },
  clip: {
    architectures: ["CLIPModel"],
    projection_dim: 8,
    text_config: { ...tower, vocab_size: 20, max_position_embeddings: 16, eos_token_id: 19 },
    vision_config: { ...tower, image_size: 16, patch_size: 8 },
  },
};

const models: Record<string, PretrainedModel> = Object.fromEntries(
  Object.entries(configs).map(([family, config]) => [
    family,
    families[family]!({ model_type: family, ...config }),
  ]),
);
models["a decoder as an encoder"] = new CausalEncoder(
  families["llama"]!({ model_type: "llama", ...llama }) as LanguageModel,
);

/** What a pass of the model gives, whatever its kind. */
function run(
  model: PretrainedModel,
  params: ValueRecord,
  sites: ReadonlyMap<Module, SiteFn>,
  ids: Value,
  pixels: Value,
): Value[] {
  const context = model.context(params, {}, { sites });
  switch (model.kind) {
    case "causal-lm":
      return [(model as LanguageModel).forward(context, ids).logits];
    case "encoder":
      return [(model as EncoderModel).forward(context, ids).hidden];
    case "vision":
      return [(model as VisionModel).forward(context, pixels).hidden];
    case "vision-text": {
      const both = model as VisionTextModel;
      return [both.embedTexts(context, ids), both.embedImages(context, pixels)];
    }
    case "seq2seq": {
      const t5 = model as Seq2SeqModel;
      const read = t5.encode(context, ids);
      return [t5.decode(context, ids, t5.crossed(context, read, 2, 6)).logits];
    }
  }
}

/** Operators of the graph of a pass with these sites. */
function nodesOf(model: PretrainedModel, sites: ReadonlyMap<Module, SiteFn>): string[] {
  const traced = trace(
    ((params: ValueRecord, ids: Value, pixels: Value) =>
      run(model, params, sites, ids, pixels)) as never,
    [model.specs().params, spec([2, 6], "int32"), spec([2, 3, 16, 16])],
  );
  return reachable(traced.program.graph, traced.program.outputs)
    .map((node) => node.op as string)
    .filter((op) => op !== "input" && op !== "constant");
}

interface Call {
  readonly input: Value;
  readonly output: Value;
  readonly place: Place;
}

describe.each(Object.entries(models))("the blocks of %s", (_, model) => {
  const blocks = model.blocks!;
  const plain = nodesOf(model, new Map());

  it("are named by their paths, with modules below them", () => {
    const paths = new Map([...model.modules()].map(([path, module]) => [module, path]));
    expect(blocks.length).toBeGreaterThan(1);
    for (const { path, block, attention, feedForward } of blocks) {
      expect(paths.get(block)).toBe(path);
      for (const part of [attention, feedForward]) {
        expect(paths.get(part)).toMatch(`${path}.`);
      }
    }
    expect(new Set(blocks.flatMap((one) => [one.block, one.attention, one.feedForward])).size).toBe(
      3 * blocks.length,
    );
  });

  it("call each site once, in order, with rows of the stream's width", () => {
    const calls = new Map<Module, Call[]>();
    const order: Module[] = [];
    const note =
      (module: Module): SiteFn =>
      (input, output, _context, place) => {
        calls.set(module, [...(calls.get(module) ?? []), { input, output, place }]);
        order.push(module);
        return output;
      };
    const all = blocks.flatMap((one) => [one.attention, one.feedForward, one.block]);
    const nodes = nodesOf(model, new Map(all.map((module) => [module, note(module)])));
    // A site that changes nothing adds nothing.
    expect(nodes).toEqual(plain);
    expect(order).toEqual(all);
    for (const { attention, feedForward, block, dModel } of blocks) {
      const [mixed, inner, whole] = [attention, feedForward, block].map(
        (one) => calls.get(one)![0]!,
      );
      const [batch, length] = whole!.place.size as [number, number];
      expect(batch).toBe(2);
      const shape = [batch * length, dModel];
      for (const { input, output, place } of [mixed!, inner!, whole!]) {
        expect([input.shape, output.shape]).toEqual([shape, shape]);
        expect(place.size).toEqual([batch, length]);
      }
      for (const { place } of [mixed!, inner!]) expect(place.stream!.shape).toEqual(shape);
      expect(mixed!.place.stream).toBe(whole!.input);
    }
  });

  it("leave out of the graph what a site does not use", () => {
    const [first] = blocks;
    const skipped = nodesOf(model, new Map([[first!.block, (input: Value) => input]]));
    const withoutFirst = nodesOf(
      model,
      new Map(blocks.map(({ block }) => [block, (input: Value) => input])),
    );
    expect(skipped.length).toBeLessThan(plain.length - 10);
    expect(withoutFirst.length).toBeLessThan(skipped.length);
    const silent = nodesOf(model, new Map([[first!.attention, (input: Value) => input]]));
    expect(silent.length).toBeLessThan(plain.length);
    expect(silent.length).toBeGreaterThan(skipped.length);
  });

  it("tell attention's probabilities by the nodes that it computes with", () => {
    const [{ attention }] = blocks as [(typeof blocks)[number]];
    let shape: readonly unknown[] = [];
    const nodes = nodesOf(
      model,
      new Map<Module, SiteFn>([
        [
          attention,
          (_input, output, _context, place) => {
            const probabilities = place.attention?.();
            if (!probabilities) return output;
            shape = probabilities.shape;
            // One node that uses them, and one that uses that.
            const pair = mul(probabilities, probabilities);
            return add(output, sum(pair));
          },
        ],
      ]),
    );
    if (model.kind === "seq2seq") return expect(nodes).toEqual(plain);
    expect(shape).toHaveLength(4);
    expect(shape[0]).toBe(2);
    expect(shape[2]).toBe(shape[3]);
    expect(nodes.length).toBe(plain.length + 3);
  });
});
