import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { nodeHost } from "../../host/node.ts";
import { SafetensorsFile } from "../../io/safetensors.ts";
import { loadModel } from "../../models/folder.ts";
import { Rng } from "../../tensor/rng.ts";
import { vera, veraKind } from "./vera.ts";

const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-vera-"));
afterAll(() => rm(scratch, { recursive: true }));
const { model } = await loadModel(
  files,
  new URL("../../../test/parity/hf-llama", import.meta.url).pathname,
);

describe("VeRA", () => {
  it("has matrices for the widest layer, and two vectors for each", () => {
    const adapter = vera(model, { rank: 5, targetModules: ["v_proj", "down_proj"] });
    const { "base_model.vera_A": a, "base_model.vera_B": b } = adapter.initBuffers!();
    // v_proj reads 16 and gives 8, down_proj reads 24 and gives 16.
    expect([a!.shape, b!.shape]).toEqual([
      [5, 24],
      [16, 5],
    ]);
    const most = (numbers: ArrayLike<number>): number => Math.max(...Array.from(numbers, Math.abs));
    expect(most(a!.numbers())).toBeLessThanOrEqual(Math.sqrt(6 / 24));
    expect(most(b!.numbers())).toBeLessThanOrEqual(Math.sqrt(6 / 5));
    const other = vera(model, { rank: 5, projectionPrngKey: 1 }).initBuffers!();
    expect(other["base_model.vera_A"]!.numbers()[0]).not.toBe(a!.numbers()[0]);
  });

  it("draws the matrices that PEFT draws from the same key", async () => {
    const folder = new URL("../../../test/parity/peft-kinds/vera", import.meta.url).pathname;
    const theirs = await loadAdapter(files, folder, model, [veraKind]);
    expect(theirs.adapter.initBuffers!()).toEqual(theirs.buffers);
  });

  it("leaves the matrices out of a file when asked, and draws them anew", async () => {
    const adapter = vera(model, { rank: 5, saveProjection: false, projectionPrngKey: 9 });
    const path = join(scratch, "seed");
    const params = adapter.init(new Rng(1));
    await saveAdapter(files, path, adapter, params, { buffers: adapter.initBuffers!() });
    const file = await SafetensorsFile.open(files, join(path, "adapter_model.safetensors"));
    await file.close();
    expect([...file.entries.keys()].sort()).toEqual(Object.keys(params).sort());
    const again = await loadAdapter(files, path, model, [veraKind]);
    expect(again.buffers).toEqual(adapter.initBuffers!());
  });

  it("refuses files whose matrices are missing or of another size", async () => {
    const adapter = vera(model, { rank: 5 });
    const path = join(scratch, "wrong");
    await saveAdapter(files, path, adapter, adapter.init(new Rng(1)));
    const at = join(path, "adapter_config.json");
    const config = JSON.parse(await readFile(at, "utf8"));
    const load = async (change: object): Promise<unknown> => {
      await writeFile(at, JSON.stringify({ ...config, ...change }));
      return loadAdapter(files, path, model, [veraKind]);
    };
    await expect(load({ save_projection: false })).rejects.toThrow(
      "unexpected [base_model.vera_A, base_model.vera_B]",
    );
    await expect(load({ r: 4 })).rejects.toThrow("must have shape");
    await expect(load({ save_projection: 1 })).rejects.toThrow(
      "save_projection must be true or false, got 1.",
    );
  });

  it("sits on linear layers alone", () => {
    expect(() => vera(model, { targetModules: ["embed_tokens"] })).toThrow(
      'vera: "model.embed_tokens" is an embedding, which it does not fit',
    );
  });
});
