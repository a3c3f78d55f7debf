import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { backend, bits, noisy, scene, tiny, tinyParams } from "../../test/support/contract.ts";
import { lora as bindLora } from "../adapters/lora.ts";
import { OptionError, StateError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import type { InitialiserRole, NoOptions } from "../methods/method.ts";
import { methodById } from "../methods/registry.ts";
import { Rng } from "../tensor/rng.ts";
import { Run } from "../train/run.ts";
import type { Choices } from "./choose-methods.ts";
import { loadStart, openAdapter, saveStart, verifyKept } from "./open-adapter.ts";

const host = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-adapter-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const method = methodById("lora");
const adapterOf = (options: object): NonNullable<Choices["adapter"]> => ({
  method,
  role: method.roles.adapter!,
  options: { rank: 2, targetModules: "all-linear", ...options },
  said: Object.keys(options).join(", "),
});
/** Numbers that are not zero, taken from the base. */
const taken: InitialiserRole<NoOptions> = {
  readsData: false,
  initialise: ({ model }, lora) => ({
    lora,
    params: noisy(bindLora(model, lora).init(new Rng(1)), 2, 0.2),
    isTakenFromBase: true,
    report: { how: "noise" },
  }),
};
const choices = (options: object = {}, role = taken): Choices => ({
  adapter: adapterOf(options),
  initialiser: { method: { ...method, id: "noise" }, role, options: {}, said: "" },
  dataPolicy: undefined,
});

describe("an adapter taken from its base", () => {
  it("is trained beside another base, and kept with twice the rank on the one that was", async () => {
    const opened = (await openAdapter(host, choices(), scene()))!;
    expect(opened.report).toEqual({ how: "noise" });
    const changed = Object.keys(tinyParams).filter(
      (path) => opened.base![path] !== tinyParams[path],
    );
    expect(changed).toHaveLength(tiny.targets.size);
    const trained = { params: noisy(opened.params, 4), buffers: {} };
    const kept = await verifyKept(backend, tiny, tinyParams, opened, trained, undefined);
    expect(kept.adapter.config()["r"]).toBe(4);
    // Kept on a base that is another one.
    const other = {
      ...tinyParams,
      ...noisy({ "model.norm.weight": tinyParams["model.norm.weight"]! }, 1),
    };
    await expect(verifyKept(backend, tiny, other, opened, trained, undefined)).rejects.toThrow(
      StateError,
    );
  });

  it("begins again with what the run's folder keeps", async () => {
    const opened = (await openAdapter(host, choices(), scene()))!;
    const run = await Run.create(host.files, join(root, "run"), {});
    try {
      expect(await loadStart(host, run)).toBeUndefined();
      await saveStart(host, run, opened.start!);
      const start = (await loadStart(host, run))!;
      const none: InitialiserRole<NoOptions> = {
        readsData: false,
        initialise: () => {
          throw new Error("asked again");
        },
      };
      const again = (await openAdapter(host, choices({}, none), scene(), { start }))!;
      expect(bits(again.params)).toEqual(bits(opened.params));
      expect(bits(again.base!)).toEqual(bits(opened.base!));
    } finally {
      await run.release();
    }
  });

  it("is refused beside a base of 4 bits, and with more than plain LoRA", async () => {
    await expect(openAdapter(host, choices(), scene(), { bits: 4 })).rejects.toThrow(
      new OptionError(
        "finetune: --init noise takes its numbers from the base's weights, which --load-in-4bit keeps in 4 bits — leave one of them out.",
      ),
    );
    await expect(openAdapter(host, choices({ useDora: true }), scene())).rejects.toThrow(
      new OptionError(
        "finetune: --init noise takes its numbers from the base, which goes with plain LoRA alone — leave out useDora.",
      ),
    );
  });
});
