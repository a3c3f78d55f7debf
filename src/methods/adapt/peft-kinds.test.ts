/** Kinds of adapters that PEFT has beside LoRA, against folders that it wrote and what it computed of them. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import {
  expectGradients,
  lossPattern,
  numbersByRule,
  paramsByRule,
  type ShortGradient,
} from "../../../test/support/by-rule.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  tensorOf,
} from "../../../test/support/fixture.ts";
import { adaptedContext, numbersOf } from "../../adapters/adapted.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { valueAndGrad } from "../../autodiff/grad.ts";
import { evaluate } from "../../backend/compile.ts";
import { nodeHost } from "../../host/node.ts";
import { probeLogits } from "../../infer/verify.ts";
import { mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import { loadModel } from "../../models/folder.ts";
import { resnetFromConfig } from "../../models/resnet.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import { adamW } from "../../optim/adamw.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { TrainProgram } from "../../train/program.ts";
import { traineeOf } from "../../train/trainee.ts";
import { Updater } from "../../train/updater.ts";
import { adapterKinds } from "../registry.ts";

interface DecoderCase {
  readonly base: string;
  readonly inputs: RawTensors;
  readonly logits: RawTensor;
  readonly mergedWeights: RawTensors;
  readonly losses?: readonly number[];
  readonly finalWeights?: RawTensors;
}

interface NetworkCase {
  readonly logits: RawTensor;
  readonly gradients: Readonly<Record<string, ShortGradient>>;
}

interface KindsFixture {
  readonly decoders: Readonly<Record<string, DecoderCase>>;
  readonly network: Readonly<Record<string, unknown>>;
  readonly networks: Readonly<Record<string, NetworkCase>>;
}

const record = fixture<KindsFixture>("peft-kinds");
const backend = await parityBackend();
const { files } = nodeHost();
const parity = (name: string): string =>
  new URL(`../../../test/parity/${name}`, import.meta.url).pathname;
const scratch = await mkdtemp(join(tmpdir(), "plasticity-kinds-"));
afterAll(() => rm(scratch, { recursive: true }));

/** Writes a folder again and compares bytes and settings with PEFT's. */
async function expectSame(name: string, { adapter, params, buffers = {} }: LoadedAdapter) {
  const [copy, theirs] = [join(scratch, name), parity(`peft-kinds/${name}`)];
  const config = await readJson(theirs);
  const base = config["base_model_name_or_path"] as string;
  await saveAdapter(files, copy, adapter, params, { base, buffers });
  const weights = "adapter_model.safetensors";
  expect(await readFile(join(copy, weights))).toEqual(await readFile(join(theirs, weights)));
  const sorted = (x: unknown): unknown => (Array.isArray(x) ? [...x].sort() : x);
  for (const [key, value] of Object.entries(await readJson(copy))) {
    // Without a task PEFT notes the class of the model, which is none here.
    if (config["auto_mapping"] !== null && ["auto_mapping", "task_type"].includes(key)) continue;
    expect([key, sorted(value)]).toEqual([key, sorted(config[key])]);
  }
}

async function readJson(folder: string): Promise<Record<string, unknown>> {
  return JSON.parse(await readFile(join(folder, "adapter_config.json"), "utf8"));
}

describe.each(Object.entries(record.decoders))("a folder of PEFT's, %s", async (name, made) => {
  const { model, params } = await loadModel(files, parity(made.base));
  const loaded = await loadAdapter(files, parity(`peft-kinds/${name}`), model, adapterKinds());
  const all = tensorOf(made.inputs["ids"]!).numbers();
  const length = all.length - 1;
  const ids = Tensor.from(Array.from(all).slice(0, -1), [1, length], "int32");

  it("gives PEFT's logits, beside the base and merged", async () => {
    const expected = tensorOf(made.logits);
    const logits = await probeLogits(backend, model, params, ids, loaded);
    allclose(logits.reshape(expected.shape), expected, 1e-5);
    const merged = loaded.adapter.merge(params, loaded.params, loaded.buffers);
    const again = await probeLogits(backend, model, { ...params, ...merged }, ids);
    allclose(again.reshape(expected.shape), expected, 1e-5);
    for (const [path, raw] of Object.entries(made.mergedWeights)) {
      allclose(merged[path] ?? params[path]!, tensorOf(raw), 1e-6);
    }
  });

  it("is written again with the same bytes and the same settings", () => expectSame(name, loaded));

  // The folder of an adapter whose ranks were chosen is not trained on: PEFT goes on with all of them.
  if (!made.losses) return;
  it("trains to PEFT's losses over five AdamW steps", async () => {
    const trainee = traineeOf(model, params, loaded);
    const paths = Object.keys(loaded.params);
    const updater = new Updater(loaded.params, [{ paths, optimizer: adamW() }], backend);
    // What PEFT does in the next forward pass; ranks that AdaLoRA masks are no part of it.
    const hooks = (trainee.hooks ?? []).filter(({ changes }) => changes.length === 0);
    const program = new TrainProgram(trainee, backend);
    const part = {
      ids,
      targets: Tensor.from(Array.from(all).slice(1), [length], "int32"),
      weights: Tensor.from(new Float32Array(length).fill(1)),
    };
    for (const [step, expected] of made.losses!.entries()) {
      const loss = await program.lossAndGradients(
        part,
        updater.params,
        updater.gradients,
        length,
        new Rng(0),
      );
      expect(Math.abs(loss - expected), `step ${step}`).toBeLessThan(1e-5);
      if (step === 5) break;
      await updater.step(1e-2);
      for (const { after } of hooks) {
        const own = updater.params as TensorRecord;
        const about = { step, steps: 5, loss, gradients: {}, buffers: {}, rng: new Rng(0) };
        const changes = after!({ ...about, params: own });
        for (const [path, tensor] of Object.entries(changes?.params ?? {})) {
          (own[path]!.data as Float32Array).set(tensor.data as Float32Array);
        }
      }
      if (step === 4) {
        for (const [path, raw] of Object.entries(made.finalWeights!)) {
          allclose(updater.params[path]!, tensorOf(raw), 1e-4);
        }
      }
    }
    await program.release();
  });
});

describe.each(Object.entries(record.networks))(
  "a folder of PEFT's for convolutions, %s",
  async (name, made) => {
    const model = resnetFromConfig(record.network);
    const base = Object.fromEntries(
      Object.entries(paramsByRule(model)).map(([path, tensor]) => {
        const more = path.endsWith("running_var") ? 1 : 0;
        const numbers = Float32Array.from(tensor.numbers(), (x) => x + more);
        return [path, new Tensor("float32", tensor.shape, numbers)];
      }),
    );
    const pixels = numbersByRule("pixels", [2, 2, 24, 24]);
    const seen = new Tensor(
      "float32",
      pixels.shape,
      pixels.data.map((x) => 2 * x),
    );
    const loaded = await loadAdapter(files, parity(`peft-kinds/${name}`), model, adapterKinds());
    const forward = (p: ValueRecord, o: ValueRecord, x: Value, own?: LoadedAdapter): Value =>
      model.forward(model.context(p, p, own ? adaptedContext(own.adapter, model, o) : {}), x)
        .logits!;
    const logitsOf = (params: TensorRecord, own?: LoadedAdapter): Promise<Tensor> =>
      evaluate<Tensor>(
        backend,
        (p: ValueRecord, o: ValueRecord, x: Value) => forward(p, o, x, own),
        params,
        numbersOf(own),
        seen,
      );

    it("gives PEFT's logits, beside the base and merged", async () => {
      const expected = tensorOf(made.logits);
      allclose(await logitsOf(base, loaded), expected, 1e-5);
      const merged = loaded.adapter.merge(base, loaded.params, loaded.buffers);
      allclose(await logitsOf({ ...base, ...merged }), expected, 1e-5);
    });

    it("is written again with the same bytes and the same settings", () =>
      expectSame(name, loaded));

    it("has PEFT's gradients", async () => {
      const { params, buffers = {} } = loaded;
      const pattern = lossPattern(tensorOf(made.logits).shape);
      const found = await evaluate<[Tensor, TensorRecord]>(
        backend,
        (own: ValueRecord, kept: ValueRecord, p: ValueRecord, x: Value) =>
          valueAndGrad((o: ValueRecord) =>
            sum(mul(forward(p, { ...o, ...kept }, x, loaded), pattern)),
          )(own),
        params,
        buffers,
        base,
        seen,
      );
      expectGradients(found[1], made.gradients, 1e-4);
    });
  },
);
