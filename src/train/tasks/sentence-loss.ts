/**
 * Losses on vectors of sentences. Each takes the vectors by place (anchors, positives, negatives; R rows
 * of D numbers each), what is wanted of a pair, and which rows count; and gives a loss for each row.
 */
import { OptionError } from "../../errors.ts";
import {
  add,
  cast,
  exp,
  less,
  log,
  maximum,
  mul,
  relu,
  sqrt,
  square,
  sub,
} from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { iota } from "../../ir/indexing.ts";
import { concat, expand, reshape, slice, transpose } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import { max, sum } from "../../ir/reduce.ts";
import { normalized } from "../../models/pooling.ts";
import { crossEntropy } from "../../nn/losses.ts";

export interface SentenceRows {
  /** By place in an example: (R, D) each. */
  readonly vectors: readonly Value[];
  /** (R,) */
  readonly scores: Value;
  /** 1 for rows that count, 0 for missing ones: (R,) */
  readonly weights: Value;
}

export interface SentenceLoss {
  readonly name: string;
  /** Fewest and most texts of an example. */
  readonly texts: readonly [least: number, most: number];
  /** Whether it needs a score for each example. */
  readonly hasScore: boolean;
  /** Loss of each row, (R,). */
  rows(input: SentenceRows): Value;
}

/** Σ a b of vectors of length 1, (R,). */
function cosine(a: Value, b: Value): Value {
  return sum(mul(normalized(a), normalized(b)), 1);
}

export interface RankingOptions {
  /** What cosines are multiplied by, 1 / temperature; default 20. */
  readonly scale?: number;
  /** The positives must find their anchors too; default false. */
  readonly symmetric?: boolean;
}

/**
 * Multiple negatives ranking: of all positives and negatives in the batch each anchor must find its own
 * (Henderson et al. 2017, arXiv:1705.00652, section 4.4; InfoNCE).
 *
 *   L_i = -log( e^(s cos(a_i, p_i)) / Σ_j e^(s cos(a_i, c_j)) )      c: every positive and negative
 */
export function multipleNegatives(options: RankingOptions = {}): SentenceLoss {
  const { scale = 20, symmetric = false } = options;
  if (!(scale > 0 && Number.isFinite(scale))) {
    throw new OptionError(`sentence-embedding: scale must be a number above 0, got ${scale}.`);
  }
  return {
    name: "mnrl",
    texts: [2, 66],
    hasScore: false,
    rows: ({ vectors, weights }) => {
      const count = vectors[0]!.shape[0] as number;
      const anchors = normalized(vectors[0]!);
      const candidates = normalized(concat(vectors.slice(1), 0));
      // Missing rows are nobody's candidates.
      const absent = mul(sub(1, weights), -1e4);
      const bias = concat(
        vectors.slice(1).map(() => absent),
        0,
      );
      const scores = mul(dot(anchors, candidates, { transB: true }), scale);
      const targets = iota(count);
      const found = crossEntropy(add(scores, bias), targets, { reduction: "none" });
      if (!symmetric) return found;
      const back = add(transpose(slice(scores, 1, 0, count)), absent);
      return mul(add(found, crossEntropy(back, targets, { reduction: "none" })), 0.5);
    },
  };
}

export interface TripletOptions {
  /** By how much the negative must be farther; default 5 for "euclidean", 0.5 for "cosine". */
  readonly margin?: number;
  /** Default "euclidean". */
  readonly distance?: "euclidean" | "cosine";
}

/** max(0, d(a, p) - d(a, n) + margin) (Schroff et al. 2015, arXiv:1503.03832, eq. 1, without squares). */
export function triplet(options: TripletOptions = {}): SentenceLoss {
  const { distance = "euclidean" } = options;
  const margin = options.margin ?? (distance === "euclidean" ? 5 : 0.5);
  if (!(margin >= 0 && Number.isFinite(margin))) {
    throw new OptionError(`sentence-embedding: margin must be a number from 0, got ${margin}.`);
  }
  const far = (a: Value, b: Value): Value => {
    if (distance === "cosine") return sub(1, cosine(a, b));
    // As PyTorch's pairwise distance: 1e-6 is added, so that equal vectors have a derivative.
    return sqrt(maximum(sum(square(add(sub(a, b), 1e-6)), 1), 1e-24));
  };
  return {
    name: "triplet",
    texts: [3, 3],
    hasScore: false,
    rows: ({ vectors: [a, p, n] }) => relu(add(sub(far(a!, p!), far(a!, n!)), margin)),
  };
}

/** (cos(a, b) - score)² */
export function cosineLoss(): SentenceLoss {
  return {
    name: "cosine",
    texts: [2, 2],
    hasScore: true,
    rows: ({ vectors: [a, b], scores }) => square(sub(cosine(a!, b!), scores)),
  };
}

/**
 * Pairs that belong together (score 1) come near, others at least `margin` apart (Hadsell et al. 2006,
 * eq. 4), by the distance 1 - cos.
 */
export function contrastive(margin = 0.5): SentenceLoss {
  if (!(margin > 0 && margin <= 2)) {
    throw new OptionError(
      `sentence-embedding: margin must be above 0 and at most 2, got ${margin}.`,
    );
  }
  return {
    name: "contrastive",
    texts: [2, 2],
    hasScore: true,
    rows: ({ vectors: [a, b], scores }) => {
      const distance = sub(1, cosine(a!, b!));
      const near = mul(scores, square(distance));
      const apart = mul(sub(1, scores), square(relu(sub(margin, distance))));
      return mul(add(near, apart), 0.5);
    },
  };
}

/**
 * CoSENT: pairs of a higher score must be nearer than those of a lower one (Su 2022,
 * https://kexue.fm/archives/8847).
 *
 *   L = log(1 + Σ_{score_i > score_j} e^(s (cos_j - cos_i)))      one loss of the batch, given to each row
 */
export function cosent(scale = 20): SentenceLoss {
  if (!(scale > 0 && Number.isFinite(scale))) {
    throw new OptionError(`sentence-embedding: scale must be a number above 0, got ${scale}.`);
  }
  return {
    name: "cosent",
    texts: [2, 2],
    hasScore: true,
    rows: ({ vectors: [a, b], scores, weights }) => {
      const count = a!.shape[0] as number;
      const cosines = mul(cosine(a!, b!), scale);
      const row = (x: Value): Value => reshape(x, [1, count]);
      const column = (x: Value): Value => reshape(x, [count, 1]);
      const isOrdered = cast(less(column(scores), row(scores)), "float32");
      const counts = mul(isOrdered, mul(column(weights), row(weights)));
      // Terms that do not count are as small as can be, not zero: they are logarithms.
      const terms = add(sub(column(cosines), row(cosines)), mul(sub(1, counts), -1e4));
      const flat = reshape(terms, [count * count]);
      const top = relu(max(flat, 0, { keepDims: true }));
      const total = add(sum(exp(sub(flat, top)), 0, { keepDims: true }), exp(mul(top, -1)));
      return expand(add(log(total), top), [count]);
    },
  };
}

/**
 * The loss of the first numbers of each vector, for several sizes (Kusupati et al., "Matryoshka
 * Representation Learning", NeurIPS 2022, arXiv:2205.13147, eq. 1): such vectors may be cut.
 * @param dims numbers kept, each at most those of a vector
 * @param weights of the sizes; default 1 each
 * @throws OptionError for sizes that are none.
 */
export function matryoshka(
  loss: SentenceLoss,
  dims: readonly number[],
  weights: readonly number[] = dims.map(() => 1),
): SentenceLoss {
  if (dims.length === 0 || dims.length > 64 || !dims.every((n) => Number.isInteger(n) && n >= 1)) {
    throw new OptionError(
      `sentence-embedding: Matryoshka sizes must be 1 to 64 whole numbers from 1, got ${dims.join(", ")}.`,
    );
  }
  if (weights.length !== dims.length) {
    throw new OptionError(
      `sentence-embedding: ${dims.length} Matryoshka sizes need as many weights, got ${weights.length}.`,
    );
  }
  return {
    ...loss,
    name: `matryoshka-${loss.name}`,
    rows: (input) =>
      dims
        .map((size, i) => {
          const cut = input.vectors.map((vector) => {
            const width = vector.shape[1] as number;
            if (size > width) {
              throw new OptionError(
                `sentence-embedding: the Matryoshka size ${size} is beyond the vectors' ${width} numbers.`,
              );
            }
            return size < width ? slice(vector, 1, 0, size) : vector;
          });
          return mul(loss.rows({ ...input, vectors: cut }), weights[i]!);
        })
        .reduce((a, b) => add(a, b)),
  };
}
