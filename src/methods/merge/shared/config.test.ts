import { describe, expect, it } from "vitest";
import { readMergeConfig } from "./config.ts";
import { settingFor } from "./settings.ts";

const read = (text: string) => readMergeConfig(text, "merge.yml");

describe("a configuration", () => {
  it("is read as mergekit writes it", () => {
    const config = read(`
# the example of mergekit's README
slices:
  - sources:
      - model: a
        layer_range: [0, 32]
      - model: {model: {path: b}, lora: {path: c}}
        layer_range: [0, 32]
merge_method: model_stock
base_model: a
parameters:
  filter_wise: true
  t:
    - filter: self_attn
      value: [0, 0.5, 1e-1]
    - value: 0.5
dtype: bfloat16
out_dtype: float16
tokenizer_source: base
`);
    expect(config).toEqual({
      method: "model-stock",
      baseModel: "a",
      slices: [
        {
          sources: [
            { model: "a", layerRange: [0, 32] },
            { model: "b+c", layerRange: [0, 32] },
          ],
        },
      ],
      isWhole: false,
      parameters: {
        filter_wise: true,
        t: [{ filter: "self_attn", value: [0, 0.5, 0.1] }, { value: 0.5 }],
      },
      dtype: "float16",
      defaults: { density: 1 },
    });
  });

  const models = "merge_method: linear\nmodels: [{model: a}]\n";
  it.each([
    ["", "merge.yml must be a table, got null."],
    [
      "merge_method: linear",
      "merge.yml: has neither models nor slices — exactly one of them must be there.",
    ],
    [
      `${models}slices: []`,
      "merge.yml: has models and slices — exactly one of them must be there.",
    ],
    ["models: [{model: a}]", "merge.yml: merge_method must name a method, got undefined."],
    [
      "merge_method: linear\nmodules: {}",
      'merge.yml: the field "modules" is not supported — supported are merge_method, base_model, models, slices, parameters, dtype, out_dtype, tokenizer_source, tokenizer.',
    ],
    [
      "merge_method: linear\nmodels: [{model: a, layer_range: [0, 1]}]",
      'merge.yml: models[0]: the field "layer_range" is not supported — supported are model, parameters.',
    ],
    [
      "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}]",
      'merge.yml: slices[0]: the field "residual_weight" is not supported — supported are sources, base_model, parameters.',
    ],
    [
      "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [2, 1]}]}]",
      "merge.yml: slices[0].sources[0].layer_range must be two whole numbers, the first layer and the one after the last, got [2,1].",
    ],
    [
      "merge_method: slerp\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]",
      "merge.yml: slices[0]: its sources have 2, 3 layers — all must have as many.",
    ],
    [
      `${models}dtype: int4`,
      'merge.yml: dtype must be float32 or float16 or bfloat16, got "int4".',
    ],
    [
      `${models}tokenizer_source: union`,
      'merge.yml: tokenizer_source "union" is not supported — all models must have one vocabulary; take "base", or the folder of one of the models.',
    ],
    [
      `${models}tokenizer: {source: base, tokens: {}}`,
      'merge.yml: tokenizer: the field "tokens" is not supported — supported are source.',
    ],
    [
      `${models}parameters: {weight: {value: 1, name: x}}`,
      'merge.yml: parameters.weight: has no field "name" — it has filter and value.',
    ],
    [
      `${models}parameters: {weight: [1, {value: 2}]}`,
      'merge.yml: parameters.weight must be values or at most 4096 {filter, value}, not both, got [1,{"value":2}].',
    ],
    [
      "merge_method: linear\nmodels: [{}]",
      "merge.yml: models[0].model must name a model folder, got undefined.",
    ],
    [
      "merge_method: &x linear\nmodels: [{model: *x}]",
      'merge.yml: has an alias "*x" — write the value out.',
    ],
    ["a: 1\na: 2", /^merge\.yml: Map keys must be unique/],
    ["merge_method: !!js/function 'x'\nmodels: [{model: a}]", /^merge\.yml: Unresolved tag/],
    [
      `merge_method: linear\nmodels: ${"[".repeat(40)}${"]".repeat(40)}`,
      "merge.yml: is nested more than 12 deep.",
    ],
    [`merge_method: ${"[".repeat(100_000)}`, /^merge\.yml: /],
    [
      `# ${"x".repeat(300_000)}`,
      "merge.yml: has 300002 letters, a configuration has at most 262144.",
    ],
  ])("that says %j is refused in a sentence", (text, said) => {
    expect(() => read(text)).toThrow(said);
  });

  it("with aliases of aliases is refused before anything grows", () => {
    const lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"];
    for (let i = 1; i < 12; i++) {
      const last = `*a${i - 1}`;
      lines.push(`a${i}: &a${i} [${new Array(10).fill(last).join(", ")}]`);
    }
    expect(() => read(lines.join("\n"))).toThrow('merge.yml: has an alias "*a0"');
  });
});

describe("a setting", () => {
  it("that is a list goes evenly over the layers", () => {
    const list = [0, 1, 0.5];
    expect([0, 0.25, 0.5, 0.75, 1].map((t) => settingFor(list, "x", t))).toEqual([
      0, 0.5, 1, 0.75, 0.5,
    ]);
    expect(settingFor(["a", "b"], "x", 0.99)).toBe("a");
  });

  it("by filter takes the first that is part of the name", () => {
    const setting = [
      { filter: "mlp", value: 1 },
      { filter: "*", value: [2, 4] },
    ];
    expect(settingFor(setting, "layers.0.mlp.up", 0.5)).toBe(1);
    expect(settingFor(setting, "layers.0.attn", 0.5)).toBe(3);
    expect(settingFor([{ filter: "mlp", value: 1 }], "norm", 0)).toBeUndefined();
  });
});
