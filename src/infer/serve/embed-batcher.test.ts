import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { wordPieceConfig, wordPieceJson, writeTiny } from "../../../test/support/tiny-encoder.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { Tokenizer } from "../../data/tokenizer.ts";
import { nodeHost } from "../../host/node.ts";
import { loadAnyModel } from "../../models/folder.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { TextEmbedder } from "../embed.ts";
import { EmbedBatcher } from "./embed-batcher.ts";

/** Gives a text's length and its first code; notes its batches. */
function embedder() {
  const batches: string[][] = [];
  let running = 0;
  return {
    batches,
    dims: 2,
    encode: (text: string) => ({ ids: new Int32Array(text.length), isCut: false }),
    async embed(texts: readonly string[]): Promise<Tensor<"float32">> {
      expect(++running).toBe(1);
      batches.push([...texts]);
      await new Promise((resolve) => setImmediate(resolve));
      running--;
      if (texts.includes("")) throw new Error("a text without a token");
      const data = texts.flatMap((text) => [text.length, text.charCodeAt(0)]);
      return new Tensor("float32", [texts.length, 2], Float32Array.from(data));
    },
  };
}

const vectorOf = (text: string): number[] => [text.length, text.charCodeAt(0)];

describe("EmbedBatcher", () => {
  it("puts texts of many callers into batches and gives each its own", async () => {
    const own = embedder();
    const batcher = new EmbedBatcher(own, { batchSize: 4 });
    const callers = [["a", "bb"], ["ccc"], ["d", "ee", "fff"], [], ["g"]];
    const results = await Promise.all(callers.map((texts) => batcher.embed(texts)));
    callers.forEach((texts, i) => {
      expect(results[i]!.vectors.map((vector) => [...vector])).toEqual(texts.map(vectorOf));
      expect(results[i]!.tokens).toBe(texts.join("").length);
    });
    expect(own.batches).toEqual([
      ["a", "bb", "ccc", "d"],
      ["ee", "fff", "g"],
    ]);
  });

  it("gives the bits that a text gets alone", async () => {
    const { files } = nodeHost();
    const folder = await mkdtemp(join(tmpdir(), "plasticity-embeds-"));
    try {
      await writeTiny(files, folder, "bert");
      const { model, params } = await loadAnyModel(files, folder);
      const words = { tokenizer: wordPieceJson(), config: wordPieceConfig };
      const tokenizer = new Tokenizer(words, "tiny");
      const single = new TextEmbedder(model, params, tokenizer, await nodeOrt({ threads: 1 }));
      const batcher = new EmbedBatcher(single, { batchSize: 3 });
      const texts = ["a good movie", "the book was very bad", "red", "anna likes london"];
      const together = await Promise.all(texts.map((text) => batcher.embed([text])));
      for (const [i, text] of texts.entries()) {
        expect(together[i]!.vectors[0]).toEqual((await single.embed([text])).data);
      }
      await single.release();
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("waits for others where few are there, and not where the batch is full", async () => {
    const own = embedder();
    let waits = 0;
    let open!: () => void;
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    const batcher = new EmbedBatcher(own, {
      batchSize: 3,
      wait: () => {
        waits++;
        return gate;
      },
    });
    const first = batcher.embed(["a"]);
    const second = batcher.embed(["b"]);
    await Promise.resolve();
    expect(batcher.queued).toBe(2);
    open();
    await Promise.all([first, second]);
    expect(own.batches).toEqual([["a", "b"]]);
    await batcher.embed(["a", "b", "c"]);
    expect(waits).toBe(1);
  });

  it("gives a failure to the caller who sent the text alone", async () => {
    const own = embedder();
    const batcher = new EmbedBatcher(own, { batchSize: 3 });
    const good = batcher.embed(["a"]);
    const bad = batcher.embed(["b", "", "c", "d", "e"]);
    const later = batcher.embed(["f"]);
    await expect(bad).rejects.toThrow("a text without a token");
    expect((await good).vectors).toHaveLength(1);
    expect((await later).vectors.map((vector) => [...vector])).toEqual([vectorOf("f")]);
    expect(batcher.queued).toBe(0);
  });

  it("does not begin what was given up, and refuses more than its limit", async () => {
    const own = embedder();
    const batcher = new EmbedBatcher(own, { batchSize: 2, queued: 4 });
    const stop = new AbortController();
    const running = batcher.embed(["x", "y"]);
    const gone = batcher.embed(["a", "b", "c"], stop.signal);
    await expect(batcher.embed(["d", "e"])).rejects.toThrow(
      "embed: 3 texts wait, and 2 more would be more than 4 — try again later, or send fewer.",
    );
    stop.abort();
    await expect(gone).rejects.toThrow("embed: ended by a signal.");
    expect(await running).toEqual({
      vectors: [vectorOf("x"), vectorOf("y")].map((vector) => Float32Array.from(vector)),
      tokens: 2,
    });
    expect(own.batches).toEqual([["x", "y"]]);
    expect(batcher.queued).toBe(0);
    expect(() => new EmbedBatcher(own, { batchSize: 0 })).toThrow(
      "embed: batchSize must be a whole number from 1 to 1024, got 0.",
    );
  });
});
