/**
 * ADED against plain decoding and drafters that do not learn, on a small language model of the Brown corpus.
 *
 * A cell is one session: prompts of 32 tokens from held-out files, continued one after another by one drafter,
 * so that its table can adapt. Tables begin from the model's training files, or from nothing; in the task
 * `shift` from news alone, with prompts of romance. Every output is held against plain decoding's: where they
 * part, the choice must be within rounding of another one, else the cell counts a violation.
 */
import { StateError } from "../errors.ts";
import { Decoder } from "../infer/decoder.ts";
import type { Drafter, VerifiedPass } from "../infer/drafter.ts";
import { closeMargin, PassCount } from "../infer/speculative.ts";
import { aded } from "../methods/decode/aded.ts";
import { type DraftMethod, makeDrafter } from "../methods/decode/drafters.ts";
import { ngramStatic } from "../methods/decode/ngram-static.ts";
import { promptLookup } from "../methods/decode/prompt-lookup.ts";
import type { GivenOptions } from "../options.ts";
import { Rng } from "../tensor/rng.ts";
import { type BrownLm, brownLm, tokensOf } from "./bases/language-model.ts";
import { ofGenres, textOf } from "./data/brown.ts";
import type { Arm, Cell, CellResult, Experiment, ExperimentContext } from "./experiment.ts";

interface DraftArm {
  readonly about: string;
  /** None decodes plainly. */
  readonly method?: DraftMethod;
  readonly options?: GivenOptions;
  /** Begins from a corpus. */
  readonly hasCorpus?: boolean;
}

/** As the paper's, every pass is filled: `least` 0. 31 nodes and the text's last token make 32 positions. */
const search = { iterations: 80, depth: 6, nodes: 31, least: 0 };

const draftArms: Readonly<Record<string, DraftArm>> = {
  plain: { about: "one token a pass" },
  "prompt-lookup": { about: "copies from the text", method: promptLookup },
  static: {
    about: "the training files' tri-grams, unchanged",
    method: ngramStatic,
    options: search,
    hasCorpus: true,
  },
  "aded-empty": { about: "ADED from an empty table", method: aded, options: search },
  aded: {
    about: "ADED from the training files' tri-grams",
    method: aded,
    options: search,
    hasCorpus: true,
  },
  "aded-beam": {
    about: "ADED with drafts level by level in place of tree search",
    method: aded,
    options: { ...search, draft: "beam" },
    hasCorpus: true,
  },
  "aded-exploit": {
    about: "ADED without exploration",
    method: aded,
    options: { ...search, exploration: 0 },
    hasCorpus: true,
  },
  "aded-thrifty": {
    about: "ADED that leaves out paths below 0.1, for the clock",
    method: aded,
    options: { ...search, least: 0.1 },
    hasCorpus: true,
  },
};

const tasks = ["greedy", "sampled", "shift"] as const;

const sizes = {
  quick: { prompts: 6, promptTokens: 16, newTokens: 24 },
  full: { prompts: 32, promptTokens: 32, newTokens: 96 },
} as const;

interface Session {
  readonly texts: readonly (readonly number[])[];
  readonly seconds: number;
}

interface Shared {
  readonly lm: BrownLm;
  readonly decoder: Decoder;
  /** What tables begin from, by the task. */
  readonly corpora: ReadonlyMap<string, Int32Array>;
  /** Held-out files in tokens, by the task. */
  readonly heldOut: ReadonlyMap<string, readonly Int32Array[]>;
  /** Plain decoding of a task and a seed. */
  readonly plain: Map<string, Session>;
}

/** Places of held-out files that are long enough, drawn by the seed. */
function promptsOf(files: readonly Int32Array[], count: number, length: number, rng: Rng) {
  const long = files.filter((tokens) => tokens.length > 2 * length);
  if (long.length === 0) {
    throw new StateError(`aded: no held-out file has ${2 * length} tokens to take a prompt from.`);
  }
  return Array.from({ length: count }, () => {
    const tokens = long[rng.integer(long.length)]!;
    const start = rng.integer(tokens.length - length);
    return tokens.slice(start, start + length);
  });
}

async function open(context: ExperimentContext): Promise<Shared> {
  const isQuick = context.budget === "quick";
  const lm = await brownLm(
    context,
    isQuick
      ? { dModel: 32, nLayers: 2, maxPositions: 64 }
      : {
          dModel: 128,
          nLayers: 4,
          vocabSize: 2048,
          maxPositions: 256,
          seqLen: 128,
          batchSize: 8,
          steps: 2400,
        },
  );
  const { tokenizer, trainFiles, heldOutFiles } = lm;
  const inTokens = (files: typeof trainFiles): Int32Array => tokensOf(tokenizer, files.map(textOf));
  const apart = (files: typeof trainFiles): Int32Array[] =>
    files.map((file) => tokensOf(tokenizer, [textOf(file)]));
  const [all, news] = [inTokens(trainFiles), inTokens(ofGenres(trainFiles, "a"))];
  const [any, romance] = [apart(heldOutFiles), apart(ofGenres(heldOutFiles, "p"))];
  return {
    lm,
    decoder: new Decoder(lm.model, lm.params, context.backend),
    corpora: new Map(tasks.map((task) => [task, task === "shift" ? news : all])),
    heldOut: new Map(tasks.map((task) => [task, task === "shift" ? romance : any])),
    plain: new Map(),
  };
}

/** Where a drafted text parts from the plain one, or -1. */
function partsAt(text: readonly number[], plain: readonly number[]): number {
  const length = Math.max(text.length, plain.length);
  for (let i = 0; i < length; i++) if (text[i] !== plain[i]) return i;
  return -1;
}

async function run(cell: Cell, shared: Shared, context: ExperimentContext) {
  const { budget, host, signal } = context;
  const { decoder, lm, plain } = shared;
  const { prompts: count, promptTokens, newTokens } = sizes[budget];
  const files = shared.heldOut.get(cell.task)!;
  const prompts = promptsOf(files, count, promptTokens, new Rng(cell.seed).fold("prompts"));
  const options = {
    maxNewTokens: newTokens,
    temperature: cell.task === "sampled" ? 0.7 : 0,
    seed: cell.seed,
    signal,
  };

  /** The session's texts and time; each prompt has the same stream in all arms. */
  const decode = async (
    drafter?: Drafter,
    onPass?: (text: number, pass: VerifiedPass) => void,
  ): Promise<Session> => {
    const texts: number[][] = [];
    let seconds = 0;
    for (const [i, prompt] of prompts.entries()) {
      const started = host.clock.monotonic();
      const [made] = await decoder.generate([prompt], {
        ...options,
        ...(drafter && { drafter, onPass: (_: number, pass: VerifiedPass) => onPass?.(i, pass) }),
      });
      seconds += (host.clock.monotonic() - started) / 1000;
      signal.throwIfAborted();
      texts.push([...made!]);
      context.progress(`${cell.arm}, ${cell.task}: text ${i + 1}/${prompts.length}`);
    }
    return { texts, seconds };
  };

  const key = `${cell.task} ${cell.seed}`;
  if (!plain.has(key)) {
    // Programs are loaded before the clock counts.
    await decoder.generate([prompts[0]!], { ...options, maxNewTokens: 2 });
    plain.set(key, await decode());
  }
  const expected = plain.get(key)!;
  const total = expected.texts.reduce((sum, text) => sum + text.length, 0);
  const { heldOutLoss } = lm;
  const { method, options: given, hasCorpus } = draftArms[cell.arm]!;
  if (!method) {
    return {
      tokensPerPass: 1,
      tokensPerSecond: total / expected.seconds,
      firstQuarter: 1,
      lastQuarter: 1,
      nodesPerPass: 0,
      tableMiB: 0,
      closeChoices: 0,
      differing: 0,
      violations: 0,
      heldOutLoss,
    };
  }
  const scene = {
    vocabSize: lm.model.sizes.vocabSize,
    rng: new Rng(cell.seed),
    ...(hasCorpus && { corpus: shared.corpora.get(cell.task)! }),
  };
  await decoder.generate([prompts[0]!], {
    ...options,
    maxNewTokens: 2,
    drafter: makeDrafter(promptLookup, scene),
  });
  const drafter = makeDrafter(method, scene, given);
  const counts = prompts.map(() => new PassCount());
  const margins: number[][] = prompts.map(() => []);
  const session = await decode(drafter, (text, pass) => {
    counts[text]!.add(pass);
    margins[text]!.push(...pass.margins);
  });
  const places = session.texts.map((text, i) => partsAt(text, expected.texts[i]!));
  const parted = places.flatMap((at, i) => (at < 0 ? [] : [margins[i]![at] ?? Infinity]));
  const over = (some: readonly PassCount[], of: keyof PassCount): number =>
    some.reduce((sum, one) => sum + (one[of] as number), 0);
  const perPass = (some: readonly PassCount[]): number =>
    over(some, "tokens") / over(some, "passes");
  const quarter = Math.max(1, Math.floor(counts.length / 4));
  return {
    tokensPerPass: perPass(counts),
    tokensPerSecond: over(counts, "tokens") / session.seconds,
    firstQuarter: perPass(counts.slice(0, quarter)),
    lastQuarter: perPass(counts.slice(-quarter)),
    nodesPerPass: over(counts, "drafted") / over(counts, "passes"),
    tableMiB: drafter.bytes / 2 ** 20,
    closeChoices: over(counts, "close"),
    differing: parted.length,
    violations: parted.filter((margin) => !(margin < closeMargin)).length,
    heldOutLoss,
  };
}

/**
 * `speedUp` over plain decoding, and `gain`, tokens a pass over the static table's less 1, of the same task and
 * seed; `homeGain` is the gain at greedy without a shift of genre.
 */
function derive(results: readonly CellResult[]): readonly CellResult[] {
  const metric = (arm: string, task: string, seed: number, name: string): number | undefined =>
    results.find((one) => one.arm === arm && one.task === task && one.seed === seed)?.metrics[name];
  const gain = ({ arm, seed }: CellResult, task: string): number => {
    const own = metric(arm, task, seed, "tokensPerPass") ?? 1;
    return own / (metric("static", task, seed, "tokensPerPass") ?? 1) - 1;
  };
  return results.map((result) => ({
    ...result,
    metrics: {
      ...result.metrics,
      speedUp:
        result.metrics["tokensPerSecond"]! /
        (metric("plain", result.task, result.seed, "tokensPerSecond") ?? 1),
      gain: gain(result, result.task),
      homeGain: gain(result, "greedy"),
    },
  }));
}

export const experiment: Experiment<Shared> = {
  id: "aded",
  title: "ADED: adaptive draft-verification",
  version: "1",
  metrics: {
    tokensPerPass: "tokens made for each pass of the model",
    tokensPerSecond: "tokens made in a second, measured",
    speedUp: "tokens a second over those of plain decoding",
    firstQuarter: "tokens a pass over the session's first quarter of texts",
    lastQuarter: "tokens a pass over its last quarter",
    gain: "tokens a pass over those of the static table, less 1",
    homeGain: "the same of the greedy session without a shift of genre",
    nodesPerPass: "nodes of a draft that the model read",
    tableMiB: "memory of the table at the end, in MiB",
    closeChoices: "choices within rounding of another one",
    differing: "texts that part from plain decoding's",
    violations: "texts that part where the choice is not within rounding",
    heldOutLoss: "mean -log p of the model on held-out files, nats a token",
  },
  needs: { data: ["brown"], bases: ["brownLm"] },
  plan: (budget) => ({
    arms: Object.entries(draftArms).map(
      ([name, { about }]): Arm => ({ name, about, cost: { steps: 0, examples: 0 } }),
    ),
    tasks,
    ...(budget === "quick" && { seeds: 1 }),
  }),
  open,
  run,
  derive,
  close: ({ decoder }) => decoder.release(),
};
