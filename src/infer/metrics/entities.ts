/**
 * Entities that are found whole: tags B-, I- and O of the IOB2 scheme, read strictly as `seqeval` does in
 * its strict mode (Nakayama 2018; the CoNLL-2003 task, Tjong Kim Sang and De Meulder).
 */
import { OptionError } from "../../errors.ts";
import type { ClassScore } from "./classification.ts";

/** Words [start, end) that name something of a kind. */
export interface Entity {
  readonly kind: string;
  readonly start: number;
  readonly end: number;
}

/**
 * The entities of a list of tags. An entity begins with B and goes on with I of the same kind; an I without
 * a beginning is part of none.
 * @throws OptionError for a tag that is neither O, B-… nor I-….
 */
export function entitiesOf(tags: readonly string[]): Entity[] {
  const found: Entity[] = [];
  let open: { kind: string; start: number } | undefined;
  const close = (end: number): void => {
    if (open) found.push({ ...open, end });
    open = undefined;
  };
  tags.forEach((tag, i) => {
    const [, mark, kind] = /^([BI])-(.+)$/.exec(tag) ?? [];
    if (kind === undefined && tag !== "O") {
      throw new OptionError(`entities: the tag ${JSON.stringify(tag)} is neither O, B-… nor I-….`);
    }
    if (mark === "B") {
      close(i);
      open = { kind: kind!, start: i };
    } else if (!(mark === "I" && open?.kind === kind)) close(i);
  });
  close(tags.length);
  return found;
}

export interface EntityScores extends ClassScore {
  /** Mean F1 of the kinds. */
  readonly macroF1: number;
  /** By kind, in alphabetical order. */
  readonly kinds: Readonly<Record<string, ClassScore>>;
}

/**
 * Precision, recall and F1 over all entities, and of each kind; an entity is right where kind and both
 * borders are.
 * @param truth tags of each text
 * @throws OptionError for lists of different lengths.
 */
export function entityScores(
  truth: readonly (readonly string[])[],
  answers: readonly (readonly string[])[],
): EntityScores {
  if (truth.length !== answers.length) {
    throw new OptionError(
      `entities: ${answers.length} answers for ${truth.length} texts — there must be one for each.`,
    );
  }
  const counts = new Map<string, { hits: number; made: number; wanted: number }>();
  const of = (kind: string): { hits: number; made: number; wanted: number } => {
    const known = counts.get(kind) ?? { hits: 0, made: 0, wanted: 0 };
    counts.set(kind, known);
    return known;
  };
  const key = ({ kind, start, end }: Entity): string => `${start} ${end} ${kind}`;
  truth.forEach((tags, i) => {
    if (tags.length !== answers[i]!.length) {
      throw new OptionError(
        `entities: text ${i} has ${tags.length} tags and ${answers[i]!.length} answers.`,
      );
    }
    const wanted = entitiesOf(tags);
    const known = new Set(wanted.map(key));
    for (const { kind } of wanted) of(kind).wanted++;
    for (const entity of entitiesOf(answers[i]!)) {
      of(entity.kind).made++;
      if (known.has(key(entity))) of(entity.kind).hits++;
    }
  });
  const scored = (hits: number, made: number, wanted: number): ClassScore => ({
    precision: made === 0 ? 0 : hits / made,
    recall: wanted === 0 ? 0 : hits / wanted,
    f1: made + wanted === 0 ? 0 : (2 * hits) / (made + wanted),
    support: wanted,
  });
  const sorted = [...counts].sort(([a], [b]) => (a < b ? -1 : 1));
  const kinds = Object.fromEntries(
    sorted.map(([kind, { hits, made, wanted }]) => [kind, scored(hits, made, wanted)]),
  );
  const total = (name: "hits" | "made" | "wanted"): number =>
    sorted.reduce((sum, [, one]) => sum + one[name], 0);
  const each = Object.values(kinds);
  return {
    ...scored(total("hits"), total("made"), total("wanted")),
    macroF1: each.length === 0 ? 0 : each.reduce((sum, { f1 }) => sum + f1, 0) / each.length,
    kinds,
  };
}
