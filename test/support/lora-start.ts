/** First numbers of LoRA as PEFT gives them (`test/parity/lora-starts.json`), and ours for the same models. */
import { fileURLToPath } from "node:url";
import { type LoraAdapter, type LoraOptions, lora } from "../../src/adapters/lora.ts";
import { nodeOrt } from "../../src/backend/ort/node.ts";
import { memorySet } from "../../src/data/set.ts";
import { nodeHost } from "../../src/host/node.ts";
import type { Initialised, InitialiserRole, Method } from "../../src/methods/method.ts";
import { loadModel } from "../../src/models/folder.ts";
import type { LanguageModel } from "../../src/models/model.ts";
import type { TensorRecord } from "../../src/nn/module.ts";
import { prepareScene } from "../../src/train/prepare.ts";
import { fixture, type RawTensor, type RawTensors } from "./fixture.ts";

export interface StartCase {
  readonly base: string;
  readonly init: string;
  readonly targets: readonly string[];
  readonly rank: number;
  readonly alpha: number;
  readonly rankStabilized: boolean;
  readonly ids: RawTensor;
  readonly factors: RawTensors;
}

export interface StartsFixture {
  readonly cases: readonly StartCase[];
  readonly loftq: {
    readonly weight: RawTensor;
    readonly rank: number;
    readonly turns: number;
    readonly base: RawTensor;
    readonly a: RawTensor;
    readonly b: RawTensor;
    readonly error: number;
    readonly plainError: number;
  };
}

export const starts: StartsFixture = fixture<StartsFixture>("lora-starts");

/** The case's model, and what a method makes of it. */
export async function started<O extends object>(
  one: StartCase,
  method: Method<O>,
  options: O,
): Promise<{
  readonly model: LanguageModel;
  readonly base: TensorRecord;
  readonly adapter: LoraAdapter;
  readonly found: Initialised;
}> {
  const path = fileURLToPath(new URL(`../parity/${one.base}`, import.meta.url));
  const { model, params: base } = await loadModel(nodeHost().files, path);
  const [rows, length] = one.ids.shape as [number, number];
  const examples = Array.from({ length: rows }, (_, i) => ({
    ids: Int32Array.from(one.ids.data.slice(i * length, (i + 1) * length)),
    mask: new Uint8Array(length).fill(1),
  }));
  const scene = prepareScene(
    { model, frozen: base, trained: {}, maxLength: model.sizes.maxPositions },
    memorySet(examples),
    await nodeOrt({ threads: 1 }),
    { batchSize: rows },
  );
  const { rank, alpha, rankStabilized, targets: targetModules } = one;
  const wanted: LoraOptions = { rank, alpha, rankStabilized, targetModules };
  const role: InitialiserRole<O> = method.roles.initialiser!;
  const found = await role.initialise(scene, wanted, options);
  return { model, base, adapter: lora(model, found.lora), found };
}

/** Directions of a case's layer, and ours: rows of A, columns of B, turned so that signs agree. */
export function directionsOf(
  one: StartCase,
  adapter: LoraAdapter,
  params: TensorRecord,
): readonly (readonly [name: string, theirs: Float64Array, ours: Float64Array])[] {
  const rows: [string, Float64Array, Float64Array][] = [];
  for (const [path, { rank, a, b }] of adapter.layers) {
    for (const [name, suffix] of [
      [a, "lora_A.weight"],
      [b, "lora_B.weight"],
    ] as const) {
      const own = params[name]!.numbers();
      const raw = one.factors[`${path}.${suffix}`]!.data;
      for (let i = 0; i < rank; i++) {
        const take = (all: ArrayLike<number>): Float64Array =>
          Float64Array.from({ length: all.length / rank }, (_, j) =>
            suffix === "lora_A.weight" ? all[(i * all.length) / rank + j]! : all[j * rank + i]!,
          );
        const [theirs, ours] = [take(raw), take(own)];
        const dot = theirs.reduce((sum, x, j) => sum + x * ours[j]!, 0);
        rows.push([`${name} ${i}`, theirs, dot < 0 ? ours.map((x) => -x) : ours]);
      }
    }
  }
  return rows;
}

/** The same direction at length 1. */
export function unit(row: Float64Array): Float64Array {
  const norm = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0));
  return row.map((x) => x / norm);
}
