import { expect, it } from "vitest";
import { chooseFiles } from "./choose.ts";

const never = (): Promise<Uint8Array> => Promise.reject(new Error("not asked for"));
const choose = (
  names: readonly string[],
  asked?: readonly string[],
  index?: unknown,
): Promise<readonly string[]> =>
  chooseFiles(
    "org/name",
    new Set(names),
    asked,
    index === undefined
      ? never
      : () => Promise.resolve(new TextEncoder().encode(JSON.stringify(index))),
  ).then(({ paths }) => paths);

const small = [
  "added_tokens.json",
  "additional_chat_templates/tools.jinja",
  "chat_template.jinja",
  "config.json",
  "generation_config.json",
  "merges.txt",
  "special_tokens_map.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "vocab.json",
];

it("takes settings, tokenizer and safetensors, and leaves the rest", async () => {
  const others = [
    "README.md",
    "consolidated.safetensors",
    "flax_model.msgpack",
    "model.fp16.safetensors",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "pytorch_model.bin",
    "training_args.bin",
  ];
  expect(await choose([...others, "model.safetensors", ...small])).toEqual([
    ...small,
    "model.safetensors",
  ]);
});

it("takes the shards that the index names, once each", async () => {
  const names = [
    "config.json",
    "model.safetensors.index.json",
    "model-1.safetensors",
    "b.safetensors",
  ];
  const index = {
    weight_map: { x: "model-1.safetensors", y: "b.safetensors", z: "b.safetensors" },
  };
  expect(await choose(names, undefined, index)).toEqual([
    "config.json",
    "model.safetensors.index.json",
    "b.safetensors",
    "model-1.safetensors",
  ]);
  for (const map of [{}, { x: "../b.safetensors" }, { x: 1 }, [], null]) {
    await expect(choose(names, undefined, { weight_map: map })).rejects.toThrow(
      "org/name: model.safetensors.index.json: weight_map must name the files of the weights.",
    );
  }
});

it("takes an adapter, alone and beside a model", async () => {
  const adapter = ["adapter_config.json", "adapter_model.safetensors"];
  expect(await choose([...adapter, "README.md"])).toEqual(adapter);
  expect(await choose([...adapter, "model.safetensors"])).toEqual([
    ...adapter,
    "model.safetensors",
  ]);
});

it("takes a named file alone, and all parts of a split one", async () => {
  expect(await choose([], ["a.gguf"])).toEqual(["a.gguf"]);
  expect(await choose([], ["q/a-00001-of-00003.gguf"])).toEqual([
    "q/a-00001-of-00003.gguf",
    "q/a-00002-of-00003.gguf",
    "q/a-00003-of-00003.gguf",
  ]);
});

it("says what to do where there is nothing to take", async () => {
  await expect(choose(["config.json", "b.gguf", "a.gguf"])).rejects.toThrow(
    "hub: org/name holds GGUF files, name one — as org/name:a.gguf; there are a.gguf, b.gguf.",
  );
  await expect(choose(["config.json", "pytorch_model.bin"])).rejects.toThrow(
    "hub: org/name holds its weights only as pytorch_model.bin, files that may run code and are never loaded — look for a revision with model.safetensors (often @refs/pr/1), or convert it.",
  );
  await expect(choose(["x.txt"])).rejects.toThrow(
    "hub: org/name holds no model.safetensors, no model.safetensors.index.json and no adapter — there are x.txt.",
  );
  await expect(choose(["pytorch_model.bin"], ["pytorch_model.bin"])).rejects.toThrow(
    "hub: pytorch_model.bin of org/name is of a kind that may run code",
  );
});
