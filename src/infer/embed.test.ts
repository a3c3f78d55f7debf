import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parityBackend, relativeDifference } from "../../test/support/fixture.ts";
import { wordPieceConfig, wordPieceJson, writeTiny } from "../../test/support/tiny-encoder.ts";
import { Tokenizer } from "../data/tokenizer.ts";
import { nodeHost } from "../host/node.ts";
import { loadAnyModel } from "../models/folder.ts";
import { poolings } from "../models/pooling.ts";
import { readSentenceConfig, sentenceFiles } from "../models/sentence-folder.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type EmbedOptions, TextEmbedder } from "./embed.ts";

const { files } = nodeHost();
const tokenizer = new Tokenizer({ tokenizer: wordPieceJson(), config: wordPieceConfig }, "tiny");
let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-embed-"));
  await writeTiny(files, join(scratch, "bert"), "bert");
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

async function embedderOf(options: EmbedOptions = {}): Promise<TextEmbedder> {
  const { model, params } = await loadAnyModel(files, join(scratch, "bert"));
  return new TextEmbedder(model, params, tokenizer, await parityBackend(), options);
}

const texts = [
  "a good movie",
  "the book was very bad and the story is not great , anna likes london and paris",
  "red",
];

const rowOf = (vectors: Tensor<"float32">, row: number): Tensor => {
  const dims = vectors.shape[1]!;
  return Tensor.from(vectors.data.slice(row * dims, (row + 1) * dims));
};

describe("vectors", () => {
  test.each(poolings)("by %s do not depend on what stands beside a text", async (pooling) => {
    const embedder = await embedderOf({ pooling });
    try {
      const together = await embedder.embed(texts);
      for (const [i, text] of texts.entries()) {
        const alone = await embedder.embed([text]);
        expect(relativeDifference(rowOf(together, i), rowOf(alone, 0)), text).toBeLessThan(1e-6);
      }
      const turned = await embedder.embed([...texts].reverse(), { batchSize: 1 });
      expect(relativeDifference(rowOf(turned, 2), rowOf(together, 0))).toBeLessThan(1e-6);
    } finally {
      await embedder.release();
    }
  });

  test("are cut before they are normalised", async () => {
    const [whole, cut] = [await embedderOf(), await embedderOf({ dims: 5, normalize: true })];
    const long = await whole.embed(texts);
    const short = await cut.embed(texts);
    expect(short.shape).toEqual([3, 5]);
    const first = [...long.data.slice(0, 5)];
    const length = Math.hypot(...first);
    [...short.data.slice(0, 5)].forEach((value, i) => {
      expect(value).toBeCloseTo(first[i]! / length, 5);
    });
    await whole.release();
    await cut.release();
  });

  test("read a prompt before a text, and cut what is too long", async () => {
    const embedder = await embedderOf({ prompt: "the " });
    expect([...embedder.encode("movie").ids]).toEqual([
      ...[2, tokenizer.tokenToId("the")!, tokenizer.tokenToId("movie")!, 3],
    ]);
    const long = embedder.encode("good ".repeat(100));
    expect([long.ids.length, long.ids.at(-1), long.isCut]).toEqual([64, 3, true]);
    await embedder.release();
    await expect(embedder.embed(["a"])).rejects.toThrow("run: the encoder was released.");
  });

  test("refuse sizes that there are none of", async () => {
    await expect(embedderOf({ dims: 33 })).rejects.toThrow(
      "embed: dims must be a whole number from 1 to the model's 32, got 33.",
    );
    const embedder = await embedderOf();
    await expect(embedder.embed(["a"], { batchSize: 0 })).rejects.toThrow(
      "batchSize must be a whole number from 1, got 0.",
    );
    await embedder.release();
  });
});

describe("sentence-transformers folders", () => {
  const folderOf = async (name: string, contents: Record<string, unknown>): Promise<string> => {
    const folder = join(scratch, name);
    for (const [path, value] of Object.entries(contents)) {
      await mkdir(join(folder, path, ".."), { recursive: true });
      await writeFile(
        join(folder, path),
        typeof value === "string" ? value : JSON.stringify(value),
      );
    }
    return folder;
  };

  test("say pooling, normalisation, length and prompts, and are written so", async () => {
    const folder = await folderOf("written", {
      ...sentenceFiles({ pooling: "cls", normalize: true, maxLength: 48 }, 32),
      "config_sentence_transformers.json": { prompts: { query: "q: " } },
    });
    const sentence = await readSentenceConfig(files, folder);
    expect(sentence).toEqual({
      ...{ pooling: "cls", normalize: true, maxLength: 48, prompts: { query: "q: " } },
    });
    const embedder = await embedderOf({ sentence: sentence! });
    expect([embedder.pooling, embedder.normalize, embedder.maxLength]).toEqual(["cls", true, 48]);
    await embedder.release();
    expect(await readSentenceConfig(files, join(scratch, "bert"))).toBeUndefined();
  });

  test("with parts that are not computed here are refused", async () => {
    const part = (type: string, path: string): object => ({ idx: 1, name: "1", path, type });
    const dense = await folderOf("dense", {
      "modules.json": [part("sentence_transformers.models.Dense", "2_Dense")],
    });
    await expect(readSentenceConfig(files, dense)).rejects.toThrow(
      'the part "sentence_transformers.models.Dense" in "2_Dense" is not supported — Transformer, Pooling and Normalize are.',
    );
    const outside = await folderOf("outside", {
      "modules.json": [part("sentence_transformers.models.Pooling", "../other")],
    });
    await expect(readSentenceConfig(files, outside)).rejects.toThrow("is not supported");
    const two = await folderOf("two", {
      "modules.json": [part("sentence_transformers.models.Pooling", "1_Pooling")],
      "1_Pooling/config.json": { pooling_mode_cls_token: true, pooling_mode_max_tokens: true },
    });
    await expect(readSentenceConfig(files, two)).rejects.toThrow(
      "pooling by cls and max is not supported",
    );
  });
});
