/** Trees of likely continuations under a tri-gram model: by tree search, or level by level. */
import type { DraftTree } from "../../../infer/drafter.ts";
import type { TrigramRepresentative } from "./representative.ts";

/** Constants of E(s): those of MuZero (Schrittwieser et al. 2020, arXiv:1911.08265, appendix B). */
export interface ExplorationConstants {
  readonly c1: number;
  readonly c2: number;
}

const muZero: ExplorationConstants = { c1: 1.25, c2: 19652 };

/**
 * What exploring a node's children weighs: factor · E(s) · √N, E(s) = c1 + log((N + c2 + 1) / c2).
 * @param visits N, of the children together
 */
export function explorationWeight(
  visits: number,
  factor: number,
  { c1, c2 }: ExplorationConstants = muZero,
): number {
  return factor * (c1 + Math.log((visits + c2 + 1) / c2)) * Math.sqrt(visits);
}

/** Q(s, a) + weight · P(a | s) / (1 + N(s, a)), the weight from `explorationWeight`. */
export function puct(value: number, prior: number, visits: number, weight: number): number {
  return value + (weight * prior) / (1 + visits);
}

export interface SearchOptions {
  /** Rounds of selection, expansion and backup. */
  readonly iterations: number;
  /** Tokens of a path at most. */
  readonly depth: number;
  /** Nodes of the draft at most. */
  readonly nodes: number;
  /** Factor on the exploration term. */
  readonly exploration: number;
  /** Default MuZero's: 1.25 and 19652. */
  readonly constants?: ExplorationConstants;
  /** Paths with a smaller joint probability are left out of the draft. */
  readonly least: number;
  /** Of a path: the joint probability of its tokens, or their geometric mean. */
  readonly value: "joint" | "mean";
}

/** A search's nodes, 0 the root, in the order in which they were made. */
export class TreeSearch {
  readonly tokens: number[] = [-1];
  readonly parents: number[] = [-1];
  readonly visits: number[] = [0];
  /** Running means of the values of paths through a node. */
  readonly values: number[] = [0];
  /** Joint probability of a node's path. */
  readonly joint: number[] = [1];
  readonly #model: TrigramRepresentative;
  readonly #options: SearchOptions;
  readonly #before: readonly [number, number];
  readonly #depths: number[] = [0];
  /** Visits of a node's children together. */
  readonly #below: number[] = [0];
  /** Where the row of a node's next tokens is. */
  readonly #places: number[];
  /** Node of each entry of a node's row, 0 for none yet. */
  readonly #children: Int32Array;

  /** @param context the text's last two tokens */
  constructor(
    model: TrigramRepresentative,
    context: readonly [number, number],
    options: SearchOptions,
  ) {
    this.#model = model;
    this.#options = options;
    this.#before = context;
    this.#places = [model.find(...context)];
    this.#children = new Int32Array((options.iterations + 1) * model.rows.width);
  }

  /** One round: down to a node that was not visited, or to the end of a path; its value goes up. */
  iterate(): void {
    const { rows } = this.#model;
    let node = 0;
    while (this.#depths[node]! < this.#options.depth && this.#places[node]! >= 0) {
      const entry = this.select(node);
      const slot = node * rows.width + entry;
      const child = this.#children[slot]!;
      if (child === 0) {
        node = this.#expand(node, entry);
        this.#children[slot] = node;
        break;
      }
      node = child;
    }
    const joint = this.joint[node]!;
    const value =
      this.#options.value === "joint" ? joint : joint ** (1 / Math.max(1, this.#depths[node]!));
    while (node > 0) {
      const visits = ++this.visits[node]!;
      this.values[node]! += (value - this.values[node]!) / visits;
      node = this.parents[node]!;
      this.#below[node]!++;
    }
    this.visits[0]!++;
  }

  /** Entry of a node's row with the highest score; the likelier of equal ones. */
  select(node: number): number {
    const { rows } = this.#model;
    const place = this.#places[node]!;
    const size = rows.sizeAt(place);
    const { exploration, constants } = this.#options;
    const weight = explorationWeight(this.#below[node]!, exploration, constants);
    let best = 0;
    let most = -Infinity;
    for (let entry = 0; entry < size; entry++) {
      const child = this.#children[node * rows.width + entry]!;
      const value = child === 0 ? 0 : this.values[child]!;
      const visits = child === 0 ? 0 : this.visits[child]!;
      const score = puct(value, rows.shareAt(place, entry), visits, weight);
      if (score > most) [best, most] = [entry, score];
    }
    return best;
  }

  #expand(parent: number, entry: number): number {
    const { rows } = this.#model;
    const place = this.#places[parent]!;
    const token = rows.tokenAt(place, entry);
    const before = parent === 0 ? this.#before[1] : this.tokens[parent]!;
    this.tokens.push(token);
    this.parents.push(parent);
    this.visits.push(0);
    this.values.push(0);
    this.#depths.push(this.#depths[parent]! + 1);
    this.joint.push(this.joint[parent]! * rows.shareAt(place, entry));
    this.#below.push(0);
    this.#places.push(this.#model.find(before, token));
    return this.tokens.length - 1;
  }
}

/** The most visited nodes of a search; a parent has at least its children's visits and was made before. */
export function searchDraft(
  model: TrigramRepresentative,
  context: readonly [number, number],
  options: SearchOptions,
): DraftTree {
  const search = new TreeSearch(model, context, options);
  for (let i = 0; i < options.iterations; i++) search.iterate();
  const { visits, joint } = search;
  const kept = Array.from({ length: visits.length - 1 }, (_, i) => i + 1)
    .filter((node) => joint[node]! >= options.least)
    .sort((a, b) => visits[b]! - visits[a]! || a - b)
    .slice(0, options.nodes)
    .sort((a, b) => a - b);
  const placeOf = new Map(kept.map((node, place) => [node, place]));
  return {
    tokens: Int32Array.from(kept, (node) => search.tokens[node]!),
    parents: Int32Array.from(kept, (node) => placeOf.get(search.parents[node]!) ?? -1),
  };
}

/** Level by level the likeliest paths, as many on each level as share the nodes evenly. */
export function beamDraft(
  model: TrigramRepresentative,
  context: readonly [number, number],
  { depth, nodes, least }: Pick<SearchOptions, "depth" | "nodes" | "least">,
): DraftTree {
  const { rows } = model;
  const perLevel = Math.max(1, Math.floor(nodes / depth));
  const tokens: number[] = [];
  const parents: number[] = [];
  let level = [{ node: -1, u: context[0], v: context[1], joint: 1 }];
  for (let d = 0; d < depth && tokens.length + perLevel <= nodes; d++) {
    const next = level.flatMap(({ node, u, v, joint }) => {
      const place = model.find(u, v);
      const size = place < 0 ? 0 : rows.sizeAt(place);
      return Array.from({ length: size }, (_, i) => ({
        parent: node,
        u: v,
        v: rows.tokenAt(place, i),
        joint: joint * rows.shareAt(place, i),
      }));
    });
    // Sorting is stable: of equal paths the one of the likelier parent comes first.
    level = next
      .filter(({ joint }) => joint >= least)
      .sort((a, b) => b.joint - a.joint)
      .slice(0, perLevel)
      .map(({ parent, u, v, joint }) => {
        tokens.push(v);
        parents.push(parent);
        return { node: tokens.length - 1, u, v, joint };
      });
  }
  return { tokens: Int32Array.from(tokens), parents: Int32Array.from(parents) };
}
