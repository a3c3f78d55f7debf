import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, describe, expect, it } from "vitest";
import parity from "../../test/parity/chat.json" with { type: "json" };
import type { Files } from "../host/host.ts";
import { nodeHost } from "../host/node.ts";
import { encodeExamples } from "./encode.ts";
import { readExamples } from "./examples.ts";
import { readRecords } from "./formats.ts";
import { prepareData } from "./prepare.ts";
import { memorySet } from "./set.ts";
import { splitByHash } from "./split.ts";
import { Tokenizer } from "./tokenizer.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-prepare-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();
const tokenizer = new Tokenizer(
  { tokenizer: JSON.stringify(parity.tokenizers.bytes), config: '{"eos_token":"<|im_end|>"}' },
  "bytes",
);

function written(name: string, contents: string): string {
  const path = join(root, name);
  writeFileSync(path, contents);
  return path;
}

const lines = Array.from({ length: 300 }, (_, i) =>
  JSON.stringify(
    i % 10 === 3
      ? { text: `line ${i}` }
      : { prompt: `what is ${i}`, completion: i % 50 === 7 ? "" : "x".repeat(i % 9) },
  ),
);
const path = written("data.jsonl", `${lines.join("\n")}\n`);

describe("prepareData", () => {
  it("gives the sets that reading whole, splitting and encoding give", async () => {
    const options = { maxLength: 24, share: 0.2, limit: 20 };
    const prepared = await prepareData(files, path, tokenizer, options);
    const raw = splitByHash(await readExamples(files, path), options);
    expect(raw.heldOut).toHaveLength(20);
    for (const side of ["train", "heldOut"] as const) {
      const { examples, cut, empty } = encodeExamples(raw[side], tokenizer, options);
      expect(prepared[side].dataHash).toBe(memorySet(examples).dataHash);
      expect(prepared.report[side]).toEqual({ read: raw[side].length, cut, empty });
    }
    expect(prepared.heldOutRaw).toEqual(raw.heldOut);
    expect(prepared.kinds).toEqual({ text: 30, pair: 270, chat: 0, preference: 0 });
    expect(prepared.samples.map(({ raw: { kind } }) => kind)).toEqual(["pair", "text"]);
    expect(prepared.samples.every(({ example }) => example.mask.includes(1))).toBe(true);
  });

  it("gives the same from a file, where memory does not hold the data", async () => {
    const folder = join(root, "spill");
    await files.makeDirectory(folder);
    const inMemory = await prepareData(files, path, tokenizer, { maxLength: 24 });
    const spilled = await prepareData(files, path, tokenizer, {
      maxLength: 24,
      memoryLimit: 100,
      spillFolder: folder,
      keepRaw: 2,
    });
    expect(readdirSync(folder)).toEqual(["heldout.examples", "train.examples"]);
    expect(spilled.heldOutRaw).toEqual(inMemory.heldOutRaw.slice(0, 2));
    for (const side of ["train", "heldOut"] as const) {
      expect(spilled[side].dataHash).toBe(inMemory[side].dataHash);
      await spilled[side].close();
    }
  });

  it("judges by another file where one is given", async () => {
    const heldOutPath = written("judge.csv", "prompt,completion\na,b\n");
    const prepared = await prepareData(files, path, tokenizer, { maxLength: 24, heldOutPath });
    expect([prepared.report.train.read, prepared.report.heldOut.read]).toEqual([300, 1]);
  });

  it("refuses data in which nothing carries loss, and data too small to split", async () => {
    const empty = written("empty.jsonl", '{"prompt":"a","completion":""}\n');
    await expect(prepareData(files, empty, tokenizer, { maxLength: 2 })).rejects.toThrow(
      "data: no token carries loss in any of 1 examples — are the completions empty, or maxLength 2 too short?",
    );
    const one = written("one.jsonl", '{"text":"some text"}\n');
    await expect(prepareData(files, one, tokenizer, { maxLength: 24 })).rejects.toThrow(
      `${one}: has 1 examples, too few to hold some back — give a file to judge by (--held-out <file>).`,
    );
    const whole = await prepareData(files, one, tokenizer, { maxLength: 24, share: 0 });
    expect([whole.train.count, whole.heldOut.count]).toEqual([1, 0]);
    await expect(
      prepareData(files, one, tokenizer, { maxLength: 2, heldOutPath: empty }),
    ).rejects.toThrow(
      `${empty}: no token carries loss in any of 1 examples — are the completions empty, or maxLength 2 too short?`,
    );
  });

  it("leaves no file when the data is broken", async () => {
    const folder = join(root, "broken");
    await files.makeDirectory(folder);
    const bad = written("bad.jsonl", `${lines.join("\n")}\n{"text":\n`);
    await expect(
      prepareData(files, bad, tokenizer, { maxLength: 24, memoryLimit: 0, spillFolder: folder }),
    ).rejects.toThrow(`${bad}:301: invalid JSON at byte 8`);
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("memory", () => {
  it("stays bounded while 60 MB are read", async () => {
    // A file of the host's making: 60 MB need not lie on the disk.
    const text = "y".repeat(900);
    const chunk = new TextEncoder().encode(
      Array.from({ length: 256 }, (_, i) => `{"id":${i},"text":"${text}"}\n`).join(""),
    );
    const chunks = Math.ceil(60e6 / chunk.length);
    const large: Files = {
      ...files,
      async *stream() {
        for (let i = 0; i < chunks; i++) yield chunk.slice();
      },
    };
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const held = (): number => {
      collect();
      const { heapUsed, arrayBuffers } = process.memoryUsage();
      return heapUsed + arrayBuffers;
    };
    const before = held();
    let [count, highest] = [0, 0];
    for await (const { record } of readRecords(large, "large.jsonl")) {
      if (typeof record["text"] === "string") count++;
      if (count % 4096 === 0) highest = Math.max(highest, held() - before);
    }
    expect(count).toBe(256 * chunks);
    // A chunk of 240 KB and its lines.
    expect(highest).toBeLessThan(4e6);
  }, 20_000);
});
