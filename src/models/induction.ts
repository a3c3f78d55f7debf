/**
 * First numbers for a small Llama that can copy: an induction circuit written into the first two
 * layers, everything else as usual.
 *
 * Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", and Olsson et al. 2022,
 * "In-context Learning and Induction Heads", arXiv:2209.11895, describe the circuit that training finds
 * late: one head writes down what the previous token was, a head of the next layer looks for places
 * whose previous token is the current one and copies what stands there. A model of a few million
 * parameters trained on a few million tokens does not find it, so it starts with it; the matrices that
 * hold it then learn at a small share of the rate. The idea of starting from the form that weights take after training is that of
 * Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers", arXiv:2305.09828.
 *
 *   e = n + |n| u      embeddings: n in the token space, u a direction common to all tokens
 *   layer 0            queries and keys read u and differ by one position's rotation: attention to t - 1.
 *                      Values read P n, written to the space S, which embeddings leave free
 *   layer 1            query P n of this token, key S of each place, in the dimensions that RoPE turns
 *                      slowly; values read B n and write it back, so that the tied output layer says it
 */
import { OptionError } from "../errors.ts";
import { orthogonal } from "../nn/init.ts";
import type { TensorRecord } from "../nn/module.ts";
import { inverseFrequencies } from "../nn/rope.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Llama } from "./llama.ts";

/** Deviation of an embedding's entries. */
const embeddingScale = 0.04;
/** Logit between the right place and others, about, of the two attentions. */
const sharpness = { previous: 8, match: 11 };
/** Size of what is copied, against the token's own embedding. */
const copyGain = 2.2;
/** Radians that a dimension used for matching may turn over the longest distance. */
const slowTurn = 0.8;

/** Share of the learning rate that keeps the circuit: more, and the first steps on prose undo it. */
export const inductionRate = 0.01;

/** Paths of the matrices that hold the circuit. */
export function inductionPaths(): string[] {
  return [0, 1].flatMap((i) =>
    ["q_proj", "k_proj", "v_proj", "o_proj"].map(
      (name) => `model.layers.${i}.self_attn.${name}.weight`,
    ),
  );
}

/**
 * Writes the circuit into new parameters, in place.
 * @throws OptionError for a model of one layer, or one too narrow.
 */
export function wireInduction(model: Llama, params: TensorRecord, rng: Rng): void {
  const { dModel, nLayers, nHeads, nKvHeads, headDim, maxPositions } = model.sizes;
  const frequencies = inverseFrequencies(model.rope);
  const half = headDim / 2;
  const fast = frequencies.flatMap((f, i) => (f > 0.05 ? [i] : []));
  const slow = frequencies.flatMap((f, i) => (f * maxPositions < slowTurn ? [i] : []));
  const matchDims = slow.flatMap((i) => [i, i + half]);
  const nMatch = matchDims.length;
  const previousDims = Math.min(headDim, nKvHeads * nMatch);
  const tokenDims = dModel - 1 - previousDims;
  if (nLayers < 2 || nMatch === 0 || tokenDims < headDim) {
    throw new OptionError(
      `induction: needs two layers and room for ${headDim} dimensions of tokens beside ${previousDims + 1}, got ${nLayers} layers of width ${dModel}.`,
    );
  }
  // The common direction is the first axis, S the axes after it, the token space all others, turned.
  const axis = (i: number): Float32Array =>
    Float32Array.from({ length: dModel }, (_, j) => Number(i === j));
  const turned = orthogonal(rng.fold("basis"), [tokenDims, tokenDims]);
  const common = axis(0);
  const previous = (i: number): Float32Array => axis(1 + i);
  const token = (i: number): Float32Array => {
    const direction = new Float32Array(dModel);
    direction.set(turned.subarray(i * tokenDims, (i + 1) * tokenDims), 1 + previousDims);
    return direction;
  };
  const data = (path: string): Float32Array => params[path]!.data as Float32Array;

  const embedding = data("model.embed_tokens.weight");
  const noise = rng.fold("embedding");
  const tokenNorm = embeddingScale * Math.sqrt(dModel);
  const perDim = tokenNorm / Math.sqrt(tokenDims);
  for (let id = 0; id < model.sizes.vocabSize; id++) {
    const out = embedding.subarray(id * dModel, (id + 1) * dModel);
    for (let j = 0; j < dModel; j++) out[j] = tokenNorm * common[j]!;
    for (let i = 0; i < tokenDims; i++) {
      const direction = token(i);
      const size = perDim * noise.normal();
      for (let j = 0; j < dModel; j++) out[j]! += size * direction[j]!;
    }
  }
  // RMSNorm gives vectors of length √dModel, half of its square along `common`.
  const along = Math.sqrt(dModel / 2);

  const setRow = (path: string, at: number, direction: Float32Array, scale: number): void => {
    data(path).set(
      direction.map((x) => scale * x),
      at * dModel,
    );
  };
  /** Adds scale · direction to column `at` of an output projection, (dModel, heads · headDim). */
  const addColumn = (path: string, at: number, direction: Float32Array, scale: number): void => {
    const out = data(path);
    const width = nHeads * headDim;
    for (let j = 0; j < dModel; j++) out[j * width + at]! += scale * direction[j]!;
  };
  const layer = (i: number, name: string): string => `model.layers.${i}.self_attn.${name}.weight`;
  const clear = (path: string, from: number, count: number): void => {
    data(path).fill(0, from * dModel, (from + count) * dModel);
  };
  // What all tokens share says nothing about the next one: the output does not read it.
  data("model.norm.weight")[0] = 0;
  // Every block adds nothing at first but the circuit.
  for (let i = 0; i < nLayers; i++) {
    data(layer(i, "o_proj")).fill(0);
    data(`model.layers.${i}.mlp.down_proj.weight`).fill(0);
  }

  // Layer 0, first head: score Σ cos((distance - 1) θ) over the fast dimensions.
  const drop = fast.reduce((sum, i) => sum + 1 - Math.cos(frequencies[i]!), 0);
  const strength = Math.sqrt((sharpness.previous * Math.sqrt(headDim)) / drop) / along;
  clear(layer(0, "q_proj"), 0, headDim);
  clear(layer(0, "k_proj"), 0, headDim);
  clear(layer(0, "v_proj"), 0, headDim);
  for (const i of fast) {
    // The query is turned back by one position.
    setRow(layer(0, "q_proj"), i, common, strength * Math.cos(frequencies[i]!));
    setRow(layer(0, "q_proj"), i + half, common, -strength * Math.sin(frequencies[i]!));
    setRow(layer(0, "k_proj"), i, common, strength);
  }
  const matched = (head: number, i: number): number => (head * nMatch + i) % tokenDims;
  for (let i = 0; i < previousDims; i++) {
    setRow(layer(0, "v_proj"), i, token(matched(Math.floor(i / nMatch), i % nMatch)), 1);
    addColumn(layer(0, "o_proj"), i, previous(i), tokenNorm / along);
  }

  // Layer 1: every group of heads matches in its own dimensions and copies its own part.
  const perGroup = nHeads / nKvHeads;
  // What the match sees of a token: nMatch of tokenDims dimensions, lengths as after RMSNorm.
  const seen = (along * along * nMatch) / tokenDims;
  const match = Math.sqrt((sharpness.match * Math.sqrt(headDim)) / seen);
  for (let kv = 0; kv < nKvHeads; kv++) {
    const from = kv * headDim;
    clear(layer(1, "k_proj"), from, headDim);
    clear(layer(1, "v_proj"), from, headDim);
    for (let i = 0; i < headDim; i++) {
      setRow(layer(1, "v_proj"), from + i, token((kv * headDim + i) % tokenDims), 1);
    }
    for (let g = 0; g < perGroup; g++) {
      const head = (kv * perGroup + g) * headDim;
      clear(layer(1, "q_proj"), head, headDim);
      for (let i = 0; i < headDim; i++) {
        const gain = (copyGain * tokenNorm) / along / perGroup;
        addColumn(layer(1, "o_proj"), head + i, token((kv * headDim + i) % tokenDims), gain);
      }
      matchDims.forEach((dim, i) => {
        setRow(layer(1, "q_proj"), head + dim, token(matched(kv, i)), match);
      });
    }
    matchDims.forEach((dim, i) => {
      const slot = kv * nMatch + i;
      if (slot < previousDims) setRow(layer(1, "k_proj"), from + dim, previous(slot), match);
    });
  }
}
