/**
 * A reward model: a number for an answer, higher for the better of two.
 *
 * Bradley & Terry 1952; Ouyang et al., "Training language models to follow instructions with human
 * feedback", NeurIPS 2022, arXiv:2203.02155, eq. 1.
 *
 *   r(x, y) = w · h                                            h: last hidden state at the last token
 *   L       = -log σ(r(x, y_w) - r(x, y_l) - m) + c (r(x, y_w) + r(x, y_l))²
 *
 *   w → score (1, D), m → margin, c → center (arXiv:2312.09244, eq. 2: rewards about 0)
 *
 * The head is the linear layer `score` without bias of transformers' models for sequence classification,
 * and the reward is read at the last token as there. Beside an adapter it is kept as PEFT keeps a module
 * that is saved whole: `rewardAdapter` writes the folder's configuration (task SEQ_CLS, modules_to_save
 * ["score"]), which loads on `AutoModelForSequenceClassification` with one label.
 */
import type { Adapter, AnyAdapterKind, LoadedAdapter } from "../../adapters/adapter.ts";
import { loadAdapter } from "../../adapters/peft.ts";
import type { Example } from "../../data/example.ts";
import type { Preference } from "../../data/set.ts";
import { FormatError } from "../../errors.ts";
import type { Files } from "../../host/host.ts";
import { add, mul, square, stopGradient, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { reshape } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import type { LoadedModel } from "../../models/folder.ts";
import { headedModel } from "../../models/headed.ts";
import type { Headed } from "../../models/heads.ts";
import type { EncoderModel, LanguageModel } from "../../models/model.ts";
import { peftPrefix } from "../../models/peft-paths.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type BatchShape, roundUp } from "../batches.ts";
import type { Batch, Scene } from "../objective.ts";
import { checkIn, type PreferenceObjective, pairResult } from "./preference.ts";
import { halves, negLogSigmoid, rowWeights } from "./sequences.ts";

/** Where the head's weight is kept beside an adapter: PEFT's name. */
export const scorePath: string = `${peftPrefix}score.weight`;

export interface RewardOptions {
  /** Size of the model's hidden states. */
  readonly dModel: number;
  /** What the better answer must win by, from 0; default 0. */
  readonly margin?: number;
  /** Weight of the square of both rewards' sum, which keeps rewards about 0; default 0. */
  readonly center?: number;
}

/**
 * The loss of pairs from their rewards.
 * @param chosen (R,) @param rejected (R,)
 * @returns (R,)
 */
export function rewardLoss(
  chosen: Value,
  rejected: Value,
  { margin = 0, center = 0 }: Omit<RewardOptions, "dModel"> = {},
): Value {
  const losses = negLogSigmoid(sub(sub(chosen, rejected), margin));
  return center === 0 ? losses : add(losses, mul(square(add(chosen, rejected)), center));
}

/** Whole sequences (S, T), and where the last token of each is in S · T. */
export function wholeSequences(
  examples: readonly (Example | undefined)[],
  count: number,
  shape: BatchShape,
): Required<Pick<Batch, "ids" | "last">> {
  const most = shape.maxLength ?? Number.POSITIVE_INFINITY;
  const sizes = examples.map((example) => Math.min(example?.ids.length ?? 1, most));
  const longest = Math.max(1, ...sizes);
  const length = Math.max(longest, Math.min(roundUp(longest, shape.lengthMultiple ?? 16), most));
  const ids = new Int32Array(count * length);
  const last = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    const example = examples[i];
    if (example) ids.set(example.ids.subarray(0, sizes[i]), i * length);
    last[i] = i * length + (sizes[i] ?? 1) - 1;
  }
  return {
    ids: new Tensor("int32", [count, length], ids),
    last: new Tensor("int32", [count], last),
  };
}

/** Rewards of all sequences of a batch: (S,). */
export function rewardsOf(
  { model, context, values }: Pick<Scene<LanguageModel>, "model" | "context" | "values">,
  { ids, last }: ValueRecord,
): Value {
  const { hidden } = model.forward(context, ids!);
  return reshape(dot(gather(hidden, last!), values[scorePath]!, { transB: true }), [-1]);
}

/** A new head: normal numbers of deviation 0.02, as transformers begins it. */
export function scoreHead(dModel: number, rng: Rng): TensorRecord {
  return {
    [scorePath]: new Tensor("float32", [1, dModel], rng.fold("score").normals(dModel, 0.02)),
  };
}

/**
 * Preferences teach the head and what is trained of the model.
 * @throws OptionError for settings outside their range.
 */
export function rewardModel(options: RewardOptions): PreferenceObjective {
  const { dModel, margin = 0, center = 0 } = options;
  checkIn("reward: margin", margin, 0, 100);
  checkIn("reward: center", center, 0, 100);
  return {
    name: "reward",
    learningRate: { adapter: 1e-3, full: 1e-4 },
    init: (rng) => scoreHead(dModel, rng),
    batch: (examples: readonly Preference[], shape) => {
      const places: (Example | undefined)[] = new Array(2 * shape.rows).fill(undefined);
      examples.forEach(({ chosen, rejected }, i) => {
        places[i] = chosen;
        places[shape.rows + i] = rejected;
      });
      return {
        ...wholeSequences(places, 2 * shape.rows, shape),
        weights: rowWeights(examples.length, shape.rows),
      };
    },
    loss: (scene, batch) => {
      const [chosen, rejected] = halves(rewardsOf(scene, batch));
      return pairResult(
        {
          losses: rewardLoss(chosen, rejected, options),
          chosen: stopGradient(chosen),
          rejected: stopGradient(rejected),
        },
        batch["weights"]!,
      );
    },
    inspect: (scene, batch) => {
      const [chosen, rejected] = halves(rewardsOf(scene, batch));
      return { chosen, rejected };
    },
  };
}

/** An adapter with a head: its numbers are those of both, and its folder says so. */
export function rewardAdapter(adapter: Adapter, dModel: number): Adapter {
  return {
    ...adapter,
    init: (rng) => ({ ...adapter.init(rng), ...scoreHead(dModel, rng) }),
    config: (numbers) => ({
      ...adapter.config(numbers),
      task_type: "SEQ_CLS",
      modules_to_save: ["score"],
    }),
  };
}

/** A reward model as it is used: a model of texts whose head gives one number. */
export interface RewardModel extends Headed<EncoderModel> {
  /** With the head's numbers. */
  readonly adapter: LoadedAdapter;
}

/**
 * Reads the folder of an adapter that was trained with `rewardAdapter`. PEFT reads it on
 * `AutoModelForSequenceClassification` with one label, and this reads what PEFT wrote there.
 * @param base the language model that it was trained beside
 * @param kinds adapters that may be read; default LoRA alone
 * @throws FormatError when the folder holds no such adapter.
 */
export async function loadRewardModel(
  files: Files,
  path: string,
  base: Pick<LoadedModel, "model" | "params">,
  kinds?: readonly AnyAdapterKind[],
): Promise<RewardModel> {
  const rng = new Rng(0);
  const head = {
    task: "sequence-classification",
    labels: ["reward"],
    problem: "regression",
  } as const;
  const headed = headedModel(base.model, base.params, head, rng);
  const adapter = await loadAdapter(files, path, headed.model, kinds);
  if (adapter.params[scorePath]) return { ...headed, adapter };
  throw new FormatError(
    `${path}: the adapter has no head "score", so it gives no rewards — train it with --objective reward.`,
  );
}
