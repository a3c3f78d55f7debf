import { describe, expect, it } from "vitest";
import { nodeHost } from "../../host/node.ts";
import { loadModel } from "../../models/folder.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { ia3, ia3Kind } from "./ia3.ts";

const { files } = nodeHost();
const load = (name: string) =>
  loadModel(files, new URL(`../../../test/parity/${name}`, import.meta.url).pathname);
const llama = await load("hf-llama");
const gpt2 = await load("hf-gpt2");

describe("IA³", () => {
  it("sits on keys, values and the second feed-forward layer", () => {
    const adapter = ia3(llama.model);
    expect(adapter.config()).toMatchObject({
      target_modules: ["down_proj", "k_proj", "v_proj"],
      feedforward_modules: ["down_proj"],
    });
    const shapes = Object.values(adapter.init(new Rng(0))).map(({ shape }) => shape);
    // Keys and values have 8 outputs, the feed-forward layer 24 inputs.
    expect(shapes.slice(0, 3)).toEqual([
      [8, 1],
      [8, 1],
      [1, 24],
    ]);
    expect(ia3(gpt2.model).config()["feedforward_modules"]).toEqual(["mlp.c_proj"]);
  });

  it("multiplies rows and bias, or columns, when it is merged", () => {
    const adapter = ia3(gpt2.model, { targetModules: ["c_attn", "mlp.c_proj"] });
    const params = Object.fromEntries(
      Object.entries(adapter.init(new Rng(0))).map(([name, { shape, size }]) => [
        name,
        new Tensor(
          "float32",
          shape,
          Float32Array.from({ length: size }, (_, i) => i + 1),
        ),
      ]),
    );
    const merged = adapter.merge(gpt2.params, params);
    const [attention, feedForward] = ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_proj"];
    const at = (path: string, i: number): [number, number] => [
      merged[path]!.numbers()[i]!,
      gpt2.params[path]!.numbers()[i]!,
    ];
    // Weights lie (in, out): 24 outputs of attention, so that entry 26 is of output 2; 8 of feed-forward, so
    // that entry 26 is of input 3.
    const [one, before] = at(`${attention}.weight`, 26);
    expect(one).toBe(Math.fround(before * 3));
    const [bias, biasBefore] = at(`${attention}.bias`, 5);
    expect(bias).toBe(Math.fround(biasBefore * 6));
    const [two, twoBefore] = at(`${feedForward}.weight`, 26);
    expect(two).toBe(Math.fround(twoBefore * 4));
    expect(merged[`${feedForward}.bias`]).toBeUndefined();
  });

  it("names layers whole where PEFT would take others by their short names", () => {
    const adapter = ia3(llama.model, {
      targetModules: "all-linear",
      feedforwardModules: ["0.mlp.down_proj"],
    });
    const config = adapter.config();
    expect(config["feedforward_modules"]).toEqual(["model.layers.0.mlp.down_proj"]);
    expect(config["target_modules"]).toContain("model.layers.0.mlp.down_proj");
    const read = ia3Kind.read({ ...config } as never, "here", llama.model);
    expect(ia3(llama.model, read).config()).toEqual(config);
  });

  it("says what it does not know or fit", () => {
    expect(() => ia3(llama.model, { feedforwardModules: ["up_proj"] })).toThrow(
      'ia3: feedforwardModules "up_proj" names none of the layers that are scaled — the first is "model.layers.0.self_attn.k_proj".',
    );
    expect(() => ia3(llama.model, { targetModules: ["embed_tokens"] })).toThrow(
      'ia3: "model.embed_tokens" is an embedding, which it does not fit — leave it out of targetModules.',
    );
    expect(() =>
      ia3Kind.read({ target_modules: ["k_proj"], bias: "all" }, "here", llama.model),
    ).toThrow('here: bias "all" is not supported.');
  });
});
