/** How well a model with experts answers questions of single skills, of two skills, and designs proteins. */
import { contextOf, numbersOf } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import { compile } from "../backend/compile.ts";
import { Scorer } from "../infer/score.ts";
import type { Value } from "../ir/graph.ts";
import { argMax } from "../ir/reduce.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { ExperimentContext, Metrics } from "./experiment.ts";
import {
  decodeSigns,
  drawItem,
  drawSum,
  encodeSigns,
  type Item,
  isSequence,
  levelOf,
  propertyOf,
  questionOf,
  rowOf,
  type Skill,
  skills,
  type TaggedWord,
} from "./protein-tasks.ts";

/** Signs of a row. */
export const length = 64;

/** What each skill is asked by without its word; energy would be asked as force is. */
export const unnamed: readonly Skill[] = ["force", "design", "tag", "add"];

/** The model that is asked, and how often. */
export interface SkillScene {
  readonly model: LanguageModel;
  readonly base: TensorRecord;
  readonly runs: readonly (readonly TaggedWord[])[];
  /** Questions of a kind. */
  readonly test: number;
}

/** What answers an item: the same for all, or by its skill. */
export type Reader = (skill: Skill) => LoadedAdapter | undefined;

/** Whether each item of each text is answered right, sign by sign after the right ones before it. */
async function rightItems(
  context: ExperimentContext,
  { model, base }: SkillScene,
  reader: Reader,
  texts: readonly (readonly Item[])[],
  named: boolean,
): Promise<boolean[][]> {
  const readers = [...new Set(texts.flatMap((items) => items.map(({ skill }) => reader(skill))))];
  const found = texts.map((items) => items.map(() => false));
  for (const loaded of readers) {
    const scorer = new Scorer(model, base, context.backend, loaded);
    try {
      const rows = texts.map((items) => rowOf(items, named, length));
      const scores = await scorer.score(rows, { batchSize: 64 });
      texts.forEach((items, i) => {
        let at = 0;
        items.forEach((item, j) => {
          const signs = item.answer.length + 1;
          const own = scores[i]!.isTop.slice(at, at + signs);
          if (reader(item.skill) === loaded) found[i]![j] = own.every((top) => top === 1);
          at += signs;
        });
      });
    } finally {
      await scorer.release();
    }
  }
  return found;
}

/**
 * Continues texts by the likeliest sign up to a bracket, each pass over the whole text, so that gates of all kinds
 * may be read alike.
 */
async function continued(
  context: ExperimentContext,
  { model, base }: SkillScene,
  loaded: LoadedAdapter | undefined,
  texts: readonly string[],
  most: number,
): Promise<string[]> {
  const own = numbersOf(loaded);
  const count = texts.length;
  const ids = new Int32Array(count * length);
  const lengths = texts.map((text, row) => {
    const signs = encodeSigns(`\n${text}`).slice(0, length);
    ids.set(signs, row * length);
    return signs.length;
  });
  const rowsNow = (): Tensor<"int32"> =>
    Tensor.from(
      lengths.map((held, row) => row * length + held - 1),
      [count],
      "int32",
    );
  const tokens = new Tensor("int32", [count, length], ids);
  const compiled = await compile<Tensor>(
    ((values: ValueRecord, weights: ValueRecord, given: Value, rows: Value) => {
      const options = contextOf(loaded, model, values);
      return argMax(model.forward(model.context(weights, {}, options), given, { rows }).logits, -1);
    }) as never,
    [own, base, tokens, rowsNow()],
    { backend: context.backend },
  );
  const isDone = texts.map(() => false);
  try {
    for (let step = 0; step < most && !isDone.every(Boolean); step++) {
      context.signal.throwIfAborted();
      const next = (await compiled.run(own, base, tokens, rowsNow())).numbers();
      for (let row = 0; row < count; row++) {
        if (isDone[row] || lengths[row]! >= length) continue;
        ids[row * length + lengths[row]!++] = next[row]!;
        isDone[row] = decodeSigns([next[row]!]) === "]";
      }
    }
  } finally {
    await compiled.release();
  }
  return texts.map((text, row) =>
    decodeSigns(ids.slice(row * length + 1 + text.length, row * length + lengths[row]!)),
  );
}

/** The answer in what was written up to a bracket. */
const answerIn = (written: string): string => (written.endsWith("]") ? written.slice(0, -1) : "");

export async function measureSkills(
  context: ExperimentContext,
  shared: SkillScene,
  reader: Reader,
  seed: number,
): Promise<Metrics> {
  const { test, runs } = shared;
  const rng = new Rng(seed).fold("test");
  const draw = (name: string, make: (rng: Rng) => readonly Item[]): (readonly Item[])[] =>
    Array.from({ length: test }, (_, i) => make(rng.fold(name, i)));
  const share = (found: readonly (readonly boolean[])[]): number =>
    found.filter((items) => items.every(Boolean)).length / found.length;
  const mean = (numbers: readonly number[]): number =>
    numbers.reduce((total, one) => total + one, 0) / numbers.length;

  const perSkill: Record<string, number> = {};
  for (const skill of skills) {
    if (skill === "design") continue;
    const texts = draw(skill, (own) => [drawItem(skill, own, runs)]);
    perSkill[skill] = share(await rightItems(context, shared, reader, texts, true));
  }
  const t1 = draw("t1", (own) => {
    const open = unnamed.filter((skill) => skill !== "design");
    return [drawItem(open[own.integer(open.length)]!, own, runs)];
  });
  const t2 = draw("t2", (own) => drawSum(own, runs));

  // Forces that are written, and proteins for a force whose own force is then asked for.
  const proteins = draw("force", (own) => [drawItem("force", own, runs)]).map(([item]) => item!);
  const forces = await continued(
    context,
    shared,
    reader("force"),
    proteins.map((item) => questionOf(item, true)),
    4,
  );
  const offBy = (written: string, level: string): number => {
    const said = Number(answerIn(written) || Number.NaN);
    return Number.isFinite(said) ? Math.min(0.8, Math.abs(said - Number(level)) / 100) : 0.8;
  };
  const targets = Array.from({ length: test }, (_, i) => String(10 + 20 * (i % 5)));
  const asked = targets.map((given) => questionOf({ skill: "design", given }, false));
  const designs = await continued(context, shared, reader("design"), asked, 16);
  const made = designs.map(answerIn);
  const isValid = made.map(isSequence);
  const again = await continued(
    context,
    shared,
    reader("force"),
    designs.map(
      (written, i) =>
        `${asked[i]}${written}${questionOf({ skill: "force", given: made[i]! }, false)}`,
    ),
    4,
  );
  return {
    singles: mean(Object.values(perSkill)),
    ...Object.fromEntries(Object.entries(perSkill).map(([name, x]) => [`${name}Exact`, x])),
    forceError: mean(forces.map((written, i) => offBy(written, proteins[i]!.answer))),
    t1: share(await rightItems(context, shared, reader, t1, false)),
    t2: share(await rightItems(context, shared, reader, t2, false)),
    valid: isValid.filter(Boolean).length / test,
    designError: mean(
      made.map((one, i) =>
        isValid[i] ? Math.abs(propertyOf("force", one) - Number(targets[i]) / 100) : 0.8,
      ),
    ),
    t3: mean(
      made.map((one, i) => (isValid[i] && answerIn(again[i]!) === levelOf("force", one) ? 1 : 0)),
    ),
  };
}
