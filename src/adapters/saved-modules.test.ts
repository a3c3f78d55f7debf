import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { paramsByRule } from "../../test/support/by-rule.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  relativeDifference,
  tensorOf,
} from "../../test/support/fixture.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeHost } from "../host/node.ts";
import type { Value } from "../ir/graph.ts";
import { bertFromConfig } from "../models/bert.ts";
import type { TensorRecord, ValueRecord } from "../nn/index.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { LoadedAdapter } from "./adapter.ts";
import { lora } from "./lora.ts";
import { loadAdapter, saveAdapter } from "./peft.ts";
import { withModules } from "./saved-modules.ts";

const record = fixture<{
  readonly config: Readonly<Record<string, unknown>>;
  readonly ids: RawTensor;
  readonly logits: RawTensor;
}>("peft-bert");
const folder = fileURLToPath(new URL("../../test/parity/peft-bert", import.meta.url));
const { files } = nodeHost();
const model = bertFromConfig(record.config);
const base = paramsByRule(model);

let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-modules-"));
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

async function logitsOf(params: TensorRecord, loaded?: LoadedAdapter): Promise<Tensor> {
  const firsts = Tensor.from([0, 7], [2], "int32");
  return evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, own: ValueRecord, ids: Value, rows: Value) => {
      const context = model.context(p, {}, loaded?.adapter.context(own) ?? {});
      const { hidden } = model.forward(context, ids, { rows });
      return model.head!.forward(context, hidden);
    },
    params,
    loaded?.params ?? {},
    tensorOf(record.ids),
    firsts,
  );
}

describe("modules that are saved whole", () => {
  test("load from the folder that peft wrote, and give its logits", async () => {
    const loaded = await loadAdapter(files, folder, model);
    const expected = tensorOf(record.logits);
    expect(relativeDifference(await logitsOf(base, loaded), expected)).toBeLessThan(1e-5);
    // The classifier's numbers are the adapter's, not the base's.
    const { params } = loaded;
    const name = "base_model.model.classifier.weight";
    const other = { ...params, [name]: Tensor.zeros([3, 16], "float32") };
    const changed = await logitsOf(base, { ...loaded, params: other });
    expect(relativeDifference(changed, expected)).toBeGreaterThan(0.1);
  });

  test("are written into the base weights with the adapter", async () => {
    const loaded = await loadAdapter(files, folder, model);
    const merged = { ...base, ...loaded.adapter.merge(base, loaded.params) };
    expect(relativeDifference(await logitsOf(merged), tensorOf(record.logits))).toBeLessThan(1e-5);
  });

  test("are saved as peft names them, and begin with given numbers", async () => {
    const adapter = withModules(lora(model, { rank: 2 }), model, ["classifier"], {
      params: base,
      taskType: "SEQ_CLS",
    });
    const params = adapter.init(new Rng(1));
    expect(params["base_model.model.classifier.weight"]).toEqual(base["classifier.weight"]);
    const path = join(scratch, "saved");
    await saveAdapter(files, path, adapter, params);
    const loaded = await loadAdapter(files, path, model);
    expect(loaded.params).toEqual(params);
    expect(loaded.adapter.config()).toMatchObject({
      modules_to_save: ["classifier"],
      task_type: "SEQ_CLS",
    });
    expect(await logitsOf(base, loaded)).toEqual(await logitsOf(base));
  });

  test("must be there", () => {
    expect(() => withModules(lora(model), model, ["score"])).toThrow(
      'modules_to_save: "score" names no module of this bert.',
    );
  });
});
