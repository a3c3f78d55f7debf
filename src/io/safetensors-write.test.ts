import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { openCheckpoint } from "./checkpoint.ts";
import { encodeSafetensors, SafetensorsFile } from "./safetensors.ts";
import {
  createSafetensors,
  planShards,
  type TensorPlan,
  writeShards,
} from "./safetensors-write.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-write-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (name: string): string => join(root, name);

const tensors: Readonly<Record<string, Tensor>> = {
  b: Tensor.from([1, 2, 3], [3]),
  a: Tensor.from([4, 5], [2, 1], "float16"),
  c: Tensor.from([6, 7, 8, 9], [4]),
};
const plans: TensorPlan[] = [
  { name: "b", dtype: "F32", shape: [3] },
  { name: "a", dtype: "F16", shape: [2, 1] },
  { name: "c", dtype: "F32", shape: [4] },
];

describe("createSafetensors", () => {
  it("writes tensor by tensor the same bytes as all at once", async () => {
    const writer = await createSafetensors(files, at("one"), plans, { format: "pt" });
    expect(writer.order.map(({ name }) => name)).toEqual(["b", "c", "a"]);
    for (const { name } of writer.order) await writer.write(tensors[name]!);
    await writer.commit();
    const whole = encodeSafetensors(Object.entries(tensors), { format: "pt" });
    expect(new Uint8Array(readFileSync(at("one")))).toEqual(whole);
  });

  it("takes bytes of types that no tensor has", async () => {
    const plan = { name: "x", dtype: "F8_E4M3", shape: [3] } as const;
    const writer = await createSafetensors(files, at("eight"), [plan]);
    await writer.write(Uint8Array.of(1, 2, 3));
    await writer.commit();
    const file = await SafetensorsFile.open(files, at("eight"));
    expect(await file.readBytes("x")).toEqual(Uint8Array.of(1, 2, 3));
    await file.close();
  });

  it("refuses tensors out of order, too many and too few, and leaves no file", async () => {
    const open = (): ReturnType<typeof createSafetensors> =>
      createSafetensors(files, at("wrong"), plans);
    await expect((await open()).write(tensors["a"]!)).rejects.toThrow(
      'tensor "b" is F32 of 12 bytes, got F16, 4 bytes — tensors must come in the order of the header.',
    );
    await expect((await open()).commit()).rejects.toThrow(
      '3 tensors are missing, the next is "b" — write them first.',
    );
    const full = await open();
    for (const { name } of full.order) await full.write(tensors[name]!);
    await expect(full.write(tensors["a"]!)).rejects.toThrow("all 3 tensors are written already.");
    expect(readdirSync(root).filter((name) => name.startsWith("wrong"))).toEqual([]);
  });
});

describe("planShards", () => {
  const sized = (...sizes: readonly number[]): TensorPlan[] =>
    sizes.map((size, i) => ({ name: `t${i}`, dtype: "U8", shape: [size] }));
  const names = (sizes: readonly number[], most: number): string[] =>
    planShards(sized(...sizes), most).shards.map((shard) => shard.map(({ name }) => name).join());

  it("fills a file up to the limit, in order", () => {
    expect(names([4, 4, 4], 8)).toEqual(["t0,t1", "t2"]);
    expect(names([4, 5, 3], 8)).toEqual(["t0", "t1,t2"]);
    expect(names([], 8)).toEqual([""]);
  });

  it("gives a tensor above the limit a file of its own, and goes on with the one begun", () => {
    // As huggingface_hub: the large one does not close the file being filled.
    expect(names([3, 20, 3, 3], 8)).toEqual(["t1", "t0,t2", "t3"]);
  });

  it("refuses a limit below 1", () => {
    expect(() => planShards([], 0)).toThrow("maxShardBytes must be a number from 1, got 0.");
  });
});

describe("writeShards", () => {
  const read = async ({ name }: TensorPlan): Promise<Tensor> => tensors[name]!;

  it("writes files and an index that load as one model", async () => {
    const folder = at("shards");
    await files.makeDirectory(folder);
    const written = await writeShards(files, folder, plans, read, { maxShardBytes: 16 });
    expect(written).toEqual([
      "model-00001-of-00002.safetensors",
      "model-00002-of-00002.safetensors",
      "model.safetensors.index.json",
    ]);
    expect(JSON.parse(readFileSync(join(folder, written[2]!), "utf8"))).toEqual({
      metadata: { total_size: 12 + 4 + 16 },
      weight_map: { a: written[0], b: written[0], c: written[1] },
    });
    const checkpoint = await openCheckpoint(files, folder);
    for (const [name, tensor] of Object.entries(tensors)) {
      expect(await checkpoint.read(name)).toEqual(tensor);
    }
    await checkpoint.close();
  });

  it("clears away what an older model left, in both directions", async () => {
    const folder = at("again");
    await files.makeDirectory(folder);
    writeFileSync(join(folder, "README.md"), "kept");
    await writeShards(files, folder, plans, read, { maxShardBytes: 16 });
    await writeShards(files, folder, plans, read);
    expect(readdirSync(folder)).toEqual(["README.md", "model.safetensors"]);
    await writeShards(files, folder, plans, read, { maxShardBytes: 16 });
    expect(readdirSync(folder)).toHaveLength(4);
  });

  it("leaves no set that loads when it breaks off over an older one", async () => {
    const folder = at("broken");
    await files.makeDirectory(folder);
    await writeShards(files, folder, plans, read, { maxShardBytes: 16 });
    const newer = async ({ name }: TensorPlan): Promise<Tensor> => {
      if (name === "c") throw new Error("the disk is gone");
      return Tensor.from(
        new Rng(1).normals(tensors[name]!.size),
        tensors[name]!.shape,
        tensors[name]!.dtype,
      );
    };
    await expect(writeShards(files, folder, plans, newer, { maxShardBytes: 16 })).rejects.toThrow(
      "the disk is gone",
    );
    await expect(openCheckpoint(files, folder)).rejects.toThrow('has neither "model.safetensors"');
    expect(readdirSync(folder).filter((name) => name.includes(".tmp-"))).toEqual([]);
  });
});
