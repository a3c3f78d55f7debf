/**
 * What lottery-ticket training needs beside its mathematics: which weights may change, how steps fall into
 * phases, and the hook that selects and goes back.
 *
 * Ansell et al., arXiv:2110.07560, section 3; what is frozen and rewound follows the authors' release.
 */
import type { StepHook, StepMade } from "../../../adapters/hook.ts";
import { OptionError, StateError } from "../../../errors.ts";
import type { EncoderModel, PretrainedModel, VisionModel } from "../../../models/model.ts";
import { peftPrefix } from "../../../models/peft-paths.ts";
import type { Slot, TensorRecord } from "../../../nn/module.ts";
import { BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, RmsNorm } from "../../../nn/norm.ts";
import type { Rng } from "../../../tensor/rng.ts";
import { sizeOf } from "../../../tensor/shape.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { type Candidates, markLargest } from "./largest.ts";

/** Names of a weight's or a head's tensors. */
export const names = {
  delta: (path: string): string => `${peftPrefix}${path}.lt_sft_delta`,
  mask: (path: string): string => `${peftPrefix}${path}.lt_sft_mask`,
  /** Freed in earlier rounds, and differences at the start of this one. */
  chosen: (path: string): string => `${peftPrefix}${path}.lt_sft_chosen`,
  start: (path: string): string => `${peftPrefix}${path}.lt_sft_start`,
  /** A head's numbers at the start of this round. */
  head: (path: string): string => `${peftPrefix}${path}.lt_sft_head`,
};

function isNorm(module: unknown): boolean {
  return [LayerNorm, RmsNorm, GroupNorm, BatchNorm1d, BatchNorm2d].some(
    (kind) => module instanceof kind,
  );
}

/** Modules of the model's head, by path. */
export function headModules(model: PretrainedModel): readonly string[] {
  return (model as Partial<Pick<EncoderModel | VisionModel, "head">>).head?.modules ?? [];
}

const inside = (path: string, part: string): boolean => `.${path}.`.includes(`.${part}.`);

/**
 * Weights that may change: all of the body but norms and what is excluded.
 * @throws OptionError for an excluded name that names nothing.
 */
export function maskableSlots(
  model: PretrainedModel,
  exclude: readonly string[] = [],
): Map<string, Slot> {
  const all = [...model.slots()].filter(([, { kind }]) => kind === "parameter");
  const unused = exclude.find((part) => !all.some(([path]) => inside(path, part)));
  if (unused !== undefined) {
    throw new OptionError(
      `lt-sft: exclude names "${unused}", which is part of no path — paths are like ${all[0]![0]}.`,
    );
  }
  const norms = [...model.modules()].filter(([, module]) => isNorm(module)).map(([path]) => path);
  const heads = headModules(model);
  return new Map(
    all.filter(
      ([path]) =>
        !norms.some((norm) => path.startsWith(`${norm}.`)) &&
        !heads.some((head) => path.startsWith(`${head}.`)) &&
        !exclude.some((part) => inside(path, part)),
    ),
  );
}

/** Lengths of full and sparse phases, in turn; the parts of the steps differ by one at most. */
export function phaseLengths(steps: number, iterations: number, fullShare: number): number[] {
  if (steps < 2 * iterations) {
    throw new OptionError(
      `lt-sft: ${steps} steps are too few for ${iterations} rounds of a full and a sparse phase — make at least ${2 * iterations}.`,
    );
  }
  return Array.from({ length: iterations }, (_, i) => {
    const round = Math.floor((steps * (i + 1)) / iterations) - Math.floor((steps * i) / iterations);
    const full = Math.min(round - 1, Math.max(1, Math.round(round * fullShare)));
    return [full, round - full];
  }).flat();
}

/** rand-SFT: as many weights by chance, each as likely. */
export function randomMasks(
  slots: ReadonlyMap<string, Slot>,
  budget: number,
  rng: Rng,
): Map<string, Uint8Array<ArrayBuffer>> {
  const drawn = [...slots].map(([path, { shape }]): [string, Candidates] => [
    path,
    { values: rng.fold(path).uniforms(sizeOf(shape)) },
  ]);
  return markLargest(new Map(drawn), budget);
}

/** Selection and rewind at the borders of phases. */
export function lotteryHook(
  maskable: readonly string[],
  heads: readonly string[],
  budget: number,
  iterations: number,
  fullShare: number,
): StepHook {
  const isRepeated = iterations > 1;
  const lengths = (steps: number): number[] => phaseLengths(steps, iterations, fullShare);
  /** Numbers of heads that are trained beside the deltas. */
  const headsIn = ({ params }: StepMade): string[] =>
    heads.filter((path) => Object.hasOwn(params, peftPrefix + path));

  /** The end of a full phase: μ, and back to where the round began. */
  const select = (made: StepMade, round: number): ReturnType<NonNullable<StepHook["after"]>> => {
    const { params, buffers } = made;
    const k =
      Math.floor((budget * (round + 1)) / iterations) - Math.floor((budget * round) / iterations);
    const free = markLargest(
      new Map(
        maskable.map((path): [string, Candidates] => [
          path,
          {
            values: params[names.delta(path)]!.data as Float32Array,
            ...(isRepeated && { out: buffers[names.chosen(path)]!.data as Uint8Array }),
          },
        ]),
      ),
      k,
    );
    const changed: TensorRecord = {};
    const rewound: TensorRecord = {};
    for (const path of maskable) {
      const delta = params[names.delta(path)]!;
      const mask = free.get(path)!;
      const earlier = isRepeated ? (buffers[names.chosen(path)]!.data as Uint8Array) : undefined;
      if (earlier) for (let i = 0; i < mask.length; i++) mask[i]! |= earlier[i]!;
      changed[names.mask(path)] = new Tensor("bool", delta.shape, mask);
      if (isRepeated) changed[names.chosen(path)] = new Tensor("bool", delta.shape, mask.slice());
      rewound[names.delta(path)] = isRepeated
        ? buffers[names.start(path)]!.clone()
        : Tensor.zeros(delta.shape, "float32");
    }
    for (const path of headsIn(made)) {
      rewound[peftPrefix + path] = buffers[names.head(path)]!.clone();
    }
    return { params: rewound, buffers: changed, resetOptimizer: true, metrics: { chosen: k } };
  };

  /** The end of a sparse phase that another round follows: everything may move again from here. */
  const open = (made: StepMade): ReturnType<NonNullable<StepHook["after"]>> => {
    const changed: TensorRecord = {};
    for (const path of maskable) {
      const delta = made.params[names.delta(path)]!;
      const mask = made.buffers[names.mask(path)]!;
      const kept = Float32Array.from(delta.numbers(), (x, i) => (mask.data[i] === 1 ? x : 0));
      changed[names.start(path)] = new Tensor("float32", delta.shape, kept);
      changed[names.mask(path)] = new Tensor(
        "bool",
        delta.shape,
        new Uint8Array(delta.size).fill(1),
      );
    }
    for (const path of headsIn(made)) {
      changed[names.head(path)] = made.params[peftPrefix + path]!.clone();
    }
    return { buffers: changed, resetOptimizer: true };
  };

  return {
    changes: [
      ...maskable.map(names.mask),
      ...(isRepeated ? maskable.flatMap((path) => [names.chosen(path), names.start(path)]) : []),
      ...heads.map(names.head),
    ],
    reads: { params: true },
    phases: lengths,
    after: (made) => {
      if (made.step === 1) checkHeads(made, headsIn(made));
      let end = 0;
      for (const [i, length] of lengths(made.steps).entries()) {
        end += length;
        if (made.step !== end) continue;
        if (i % 2 === 0) return select(made, i / 2);
        return i + 1 < 2 * iterations ? open(made) : undefined;
      }
      return undefined;
    },
  };
}

/** @throws StateError when a head's first numbers were never told, so that there is no way back. */
function checkHeads({ buffers }: StepMade, heads: readonly string[]): void {
  if (heads.length === 0) return;
  const isKnown = heads.some((path) =>
    (buffers[names.head(path)]!.data as Float32Array).some((x) => x !== 0),
  );
  if (isKnown) return;
  throw new StateError(
    `lt-sft: the first numbers of the head (${heads[0]}) are not known — begin with those that prepare gives (firstNumbers).`,
  );
}
