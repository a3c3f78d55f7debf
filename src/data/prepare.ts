/** From data files to the sets that training and judging read, in one pass and with bounded memory. */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { type EncodeExamplesOptions, encodeExample, noLoss } from "./encode.ts";
import { type Example, promptText, type RawExample } from "./example.ts";
import { type ReadExamplesOptions, streamExamples } from "./examples.ts";
import type { ExampleSet } from "./set.ts";
import { type SplitOptions, splitBound, splitHash } from "./split.ts";
import { SetCollector } from "./store.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface PrepareOptions extends EncodeExamplesOptions, ReadExamplesOptions, SplitOptions {
  /** A file to judge by; without it a share of the data is held out by hash. */
  readonly heldOutPath?: string;
  /**
   * What is encoded of an example of the data: its parts follow each other in the set, and are all left out
   * when one of them carries no loss. Default: the example itself. As `partsOf`.
   */
  readonly parts?: (raw: RawExample) => readonly RawExample[];
  /** Held-out examples kept as they were read, for asking; default 1000. */
  readonly keepRaw?: number;
  /** Bytes of tokens held in memory, for each side; default 256 MiB. */
  readonly memoryLimit?: number;
  /** Folder for what memory does not hold; without it all stays in memory. */
  readonly spillFolder?: string;
}

export interface SideReport {
  /** Examples read. */
  readonly read: number;
  /** Examples cut to maxLength. */
  readonly cut: number;
  /** Examples left out, since nothing in them carries loss. */
  readonly empty: number;
}

/** The first example of a kind, for the preview. */
export interface Sample {
  readonly raw: RawExample;
  readonly example: Example;
}

export interface PreparedData {
  readonly train: ExampleSet;
  readonly heldOut: ExampleSet;
  /** The first held-out examples as they were read, at most `keepRaw`. */
  readonly heldOutRaw: readonly RawExample[];
  readonly report: { readonly train: SideReport; readonly heldOut: SideReport };
  /** The first training example of each kind. */
  readonly samples: readonly Sample[];
  /** Examples of each kind over both sides. */
  readonly kinds: Readonly<Record<RawExample["kind"], number>>;
}

class Side {
  readonly collector: SetCollector;
  read = 0;
  cut = 0;
  empty = 0;

  constructor(collector: SetCollector) {
    this.collector = collector;
  }

  get report(): SideReport {
    const { read, cut, empty } = this;
    return { read, cut, empty };
  }
}

const itself = (raw: RawExample): readonly RawExample[] => [raw];

/** A first pass over the file, only where a limit makes the bound depend on all hashes. */
async function boundOf(files: Files, path: string, options: PrepareOptions): Promise<number> {
  if (options.heldOutPath !== undefined) return 0;
  if (options.limit === undefined) return splitBound([], options);
  let hashes = new Float64Array(1024);
  let count = 0;
  for await (const example of streamExamples(files, path, options)) {
    if (count === hashes.length) {
      const grown = new Float64Array(2 * count);
      grown.set(hashes);
      hashes = grown;
    }
    hashes[count++] = splitHash(promptText(example));
  }
  return splitBound(hashes.subarray(0, count), options);
}

/**
 * Reads, splits and encodes a file of examples.
 * @throws FormatError naming file and line.
 * @throws OptionError when no token carries loss, or no example is left on a side that needs one.
 */
export async function prepareData(
  files: Files,
  path: string,
  tokenizer: Tokenizer,
  options: PrepareOptions,
): Promise<PreparedData> {
  const { heldOutPath, keepRaw = 1000, memoryLimit, spillFolder, parts = itself } = options;
  const bound = await boundOf(files, path, options);
  const sideOf = (name: string): Side =>
    new Side(
      new SetCollector(files, {
        ...(memoryLimit !== undefined && { memoryLimit }),
        ...(spillFolder !== undefined && { spillPath: files.join(spillFolder, name) }),
      }),
    );
  const [train, heldOut] = [sideOf("train.examples"), sideOf("heldout.examples")];
  const heldOutRaw: RawExample[] = [];
  const samples = new Map<RawExample["kind"], Sample>();
  const kinds = { text: 0, pair: 0, chat: 0, preference: 0 };
  const add = async (raw: RawExample, side: Side): Promise<void> => {
    const encoded = parts(raw).map((part) => encodeExample(part, tokenizer, options));
    const { ids, mask } = encoded[0]!;
    kinds[raw.kind]++;
    side.read++;
    if (encoded.some(({ isCut }) => isCut)) side.cut++;
    if (side === heldOut && heldOutRaw.length < keepRaw) heldOutRaw.push(raw);
    // A sample without loss shows what is wrong, but one with loss is better.
    const hasLoss = encoded.every((part) => part.mask.includes(1));
    const sample = samples.get(raw.kind);
    if (side === train && (!sample || (hasLoss && !sample.example.mask.includes(1)))) {
      samples.set(raw.kind, { raw, example: { ids, mask } });
    }
    if (hasLoss) for (const { isCut: _, ...part } of encoded) await side.collector.add(part);
    else side.empty++;
  };
  const sets: ExampleSet[] = [];
  try {
    for await (const raw of streamExamples(files, path, options)) {
      const isHeldOut = heldOutPath === undefined && splitHash(promptText(raw)) < bound;
      await add(raw, isHeldOut ? heldOut : train);
    }
    if (heldOutPath !== undefined) {
      for await (const raw of streamExamples(files, heldOutPath, options)) await add(raw, heldOut);
    }
    checkSides(train, heldOut, path, options);
    sets.push(await train.collector.finish());
    sets.push(await heldOut.collector.finish());
  } catch (error) {
    for (const set of sets) await set.close();
    await train.collector.abort();
    await heldOut.collector.abort();
    throw error;
  }
  return {
    train: sets[0]!,
    heldOut: sets[1]!,
    heldOutRaw,
    report: { train: train.report, heldOut: heldOut.report },
    samples: [...samples.values()],
    kinds,
  };
}

function checkSides(train: Side, heldOut: Side, path: string, options: PrepareOptions): void {
  const { maxLength, heldOutPath, share } = options;
  const all = train.read + heldOut.read;
  if (train.empty + heldOut.empty === all) throw noLoss(all, maxLength);
  if (train.read === train.empty) {
    throw train.read === 0
      ? new OptionError(
          `${path}: of ${all} examples none is left to train on — give more, or hold out fewer.`,
        )
      : noLoss(train.read, maxLength);
  }
  if (heldOut.read > heldOut.empty || share === 0 || options.limit === 0) return;
  if (heldOutPath !== undefined) {
    throw new FormatError(
      `${heldOutPath}: no token carries loss in any of ${heldOut.read} examples — are the completions empty, or maxLength ${maxLength} too short?`,
      { path: heldOutPath },
    );
  }
  throw new OptionError(
    `${path}: has ${all} examples, too few to hold some back — give a file to judge by (--held-out <file>).`,
  );
}
