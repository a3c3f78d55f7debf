/** Every objective against TRL's trainers, run on a table in place of a model (`scripts/parity/trl.py`). */
import { describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import {
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  tensorOf,
} from "../../../test/support/fixture.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import { valueAndGrad } from "../../autodiff/grad.ts";
import { evaluate } from "../../backend/compile.ts";
import type { Example } from "../../data/example.ts";
import type { Preference } from "../../data/set.ts";
import { add, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { reshape } from "../../ir/layout.ts";
import { mean } from "../../ir/reduce.ts";
import type { ForwardOptions, LanguageModel } from "../../models/model.ts";
import { normal } from "../../nn/init.ts";
import { type Context, Module, type Slot, type ValueRecord } from "../../nn/module.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { AnyObjective, Batch } from "../objective.ts";
import { distill } from "./distill.ts";
import { dpo } from "./dpo.ts";
import { grpo, type Rollout } from "./grpo.ts";
import { ipo } from "./ipo.ts";
import { kto } from "./kto.ts";
import { orpo } from "./orpo.ts";
import { gae, ppoLosses } from "./ppo.ts";
import { rewardLoss } from "./reward.ts";
import { simpo } from "./simpo.ts";

interface Turn {
  readonly prompt: readonly number[];
  readonly completion: readonly number[];
  readonly label?: boolean;
}

interface Case {
  // biome-ignore lint/suspicious/noExplicitAny: each objective has options of its own
  readonly options: Readonly<Record<string, any>>;
  readonly loss: RawTensor;
  readonly gradient: RawTensor;
}

const recorded = fixture<{
  readonly student: RawTensor;
  readonly reference: RawTensor;
  readonly chosen: readonly Turn[];
  readonly rejected: readonly Turn[];
  readonly judged: readonly Turn[];
  readonly dpo: readonly Case[];
  readonly ipo: readonly Case[];
  readonly kto: readonly Case[];
  readonly orpo: readonly Case[];
  readonly simpo: readonly Case[];
  readonly distill: readonly Case[];
  readonly reward: readonly (Case & { readonly rewards: RawTensor })[];
  readonly advantages: RawTensor;
  readonly grpo: readonly (Case & { readonly old: readonly RawTensor[] })[];
  readonly ppo: RawTensors & {
    readonly options: Readonly<Record<string, number>>;
    readonly gradient: RawTensors;
  };
}>("trl");

const student = tensorOf(recorded.student);
const taught = tensorOf(recorded.reference);
const vocabSize = student.shape[0]!;

/** A model whose next token's logits are the row of the last token. */
class Table extends Module {
  readonly weight: Slot = this.parameter("weight", [vocabSize, vocabSize], normal(1));
  readonly sizes: { readonly vocabSize: number } = { vocabSize };

  forward(context: Context, ids: Value, options: ForwardOptions = {}): { logits: Value } {
    const flat = reshape(ids, [-1]);
    const wanted = options.rows ? gather(flat, options.rows) : flat;
    return { logits: gather(context.get(this.weight), wanted) };
  }
}
const table = new Table() as unknown as LanguageModel;

const exampleOf = ({ prompt, completion, label }: Turn): Example => ({
  ids: Int32Array.from([...prompt, ...completion]),
  mask: Uint8Array.from([...prompt.map(() => 0), ...completion.map(() => 1)]),
  ...(label !== undefined && { isGood: label }),
});
const pairs = recorded.chosen.map(
  (turn, i): Preference => ({
    chosen: exampleOf(turn),
    rejected: exampleOf(recorded.rejected[i]!),
  }),
);
const judged = recorded.judged.map(exampleOf);
/** More rows than there are examples: what is padding must not count. */
const shape = { rows: 6, lengthMultiple: 4 };

async function expectCase(objective: AnyObjective, batch: Batch, expected: Case): Promise<void> {
  const frozen = { weight: taught, ...objective.frozen };
  const loss = (own: ValueRecord, fixed: ValueRecord, parts: ValueRecord): Value =>
    objective.loss(
      {
        model: table,
        values: { ...fixed, ...own },
        context: (table as unknown as Module).context(own),
        reference: () => (table as unknown as Module).context(fixed),
      },
      parts,
    ).sum;
  const [sum, slope] = await evaluate<readonly [Tensor, { readonly weight: Tensor }]>(
    await parityBackend(),
    valueAndGrad(loss as never) as never,
    { weight: student },
    frozen,
    batch as never,
  );
  const total = batch.weights.data.reduce((a, b) => a + b, 0);
  const what = `${objective.name} ${JSON.stringify(expected.options)}`;
  const over = (tensor: Tensor): Tensor =>
    Tensor.from(
      Array.from(tensor.numbers(), (x) => x / total),
      tensor.shape,
    );
  allclose(over(sum), tensorOf(expected.loss), tolerance.float32, what);
  allclose(over(slope.weight), tensorOf(expected.gradient), tolerance.float32, `${what}: gradient`);
}

const named = (cases: readonly Case[]): [string, Case][] =>
  cases.map((one) => [JSON.stringify(one.options), one]);

describe("losses and gradients are TRL's", () => {
  it.each(named(recorded.dpo))("DPO %s", async (_, one) => {
    const objective = dpo(one.options);
    await expectCase(objective, objective.batch(pairs, shape), one);
  });

  it.each(named(recorded.ipo))("IPO %s", async (_, one) => {
    const objective = ipo(one.options);
    await expectCase(objective, objective.batch(pairs, shape), one);
  });

  it.each(named(recorded.kto))("KTO %s", async (_, one) => {
    const objective = kto(one.options);
    await expectCase(objective, objective.batch(judged, shape), one);
  });

  it.each(named(recorded.orpo))("ORPO %s", async (_, one) => {
    const objective = orpo(one.options);
    await expectCase(objective, objective.batch(pairs, shape), one);
  });

  it.each(named(recorded.simpo))("SimPO %s", async (_, one) => {
    const objective = simpo(one.options);
    await expectCase(objective, objective.batch(pairs, shape), one);
  });

  it.each(named(recorded.distill))("distillation %s", async (_, one) => {
    const teacher = { model: table, params: { weight: taught } };
    const objective = distill({ teacher, ...one.options });
    await expectCase(objective, objective.batch(judged, shape), one);
  });

  it.each(recorded.reward.map((one) => [JSON.stringify(one.options), one] as const))(
    "the reward model %s",
    async (_, one) => {
      const rewards = Array.from(tensorOf(one.rewards).numbers());
      const half = (at: number): Tensor => Tensor.from(rewards.slice(3 * at, 3 * at + 3));
      const [loss, slopes] = await evaluate<readonly [Tensor, readonly Tensor[]]>(
        await parityBackend(),
        valueAndGrad(([good, bad]: Value[]) => mean(rewardLoss(good!, bad!, one.options))) as never,
        [half(0), half(1)],
      );
      allclose(loss, tensorOf(one.loss), tolerance.float32);
      const slope = Tensor.from(slopes.flatMap((part) => Array.from(part.numbers())));
      allclose(slope, tensorOf(one.gradient), tolerance.float32);
    },
  );

  it.each(recorded.grpo.map((one) => [JSON.stringify(one.options), one] as const))(
    "GRPO %s",
    async (_, one) => {
      const objective = grpo(one.options);
      const advantages = tensorOf(recorded.advantages).numbers();
      const rollouts = judged.map(
        (example, i): Rollout => ({
          example,
          advantage: advantages[i]!,
          old: Float32Array.from(tensorOf(one.old[i]!).numbers()),
        }),
      );
      await expectCase(objective, objective.batch(rollouts, shape), one);
    },
  );

  it("PPO", async () => {
    const { options, gradient } = recorded.ppo;
    const [mask, values, rewards, old, logps, predicted, advantages, returns] = (
      ["mask", "values", "rewards", "old", "logps", "predicted", "advantages", "returns"] as const
    ).map((name) => tensorOf(recorded.ppo[name]!)) as Tensor[];
    const [rows, length] = mask!.shape as [number, number];
    const lengths = Array.from({ length: rows }, (_, row) =>
      Array.from({ length }, (_x, t) => mask!.numbers()[row * length + t]!).reduce((a, b) => a + b),
    );
    const take = (tensor: Tensor): Float32Array[] =>
      lengths.map((count, row) =>
        Float32Array.from({ length: count }, (_, t) => tensor.numbers()[row * length + t]!),
      );
    const found = gae(take(rewards!), take(values!), {
      gamma: options["gamma"]!,
      lambda: options["lambda"]!,
    });
    const flat = (rows: readonly ArrayLike<number>[]): Tensor =>
      Tensor.from(rows.flatMap((row) => Array.from(row)));
    allclose(flat(found.advantages), flat(take(advantages!)), tolerance.float32, "advantages");
    allclose(flat(found.returns), flat(take(returns!)), tolerance.float32, "returns");
    const count = lengths.reduce((a, b) => a + b);
    const items = { advantages: flat(found.advantages), returns: flat(found.returns) };
    const fixed = { ...items, old: flat(take(old!)), values: flat(take(values!)) };
    const [losses, slopes] = await evaluate<readonly [readonly Tensor[], readonly Tensor[]]>(
      await parityBackend(),
      ((x: readonly Value[], parts: ValueRecord) => {
        const lossOf = ([own, value]: readonly Value[]) => {
          const { policy, value: fit } = ppoLosses(own!, value!, parts as never, {
            clip: options["clip"]!,
            valueClip: options["valueClip"]!,
          });
          return { policy: mean(policy), fit: mean(fit) };
        };
        const { policy, fit } = lossOf(x);
        const [, slope] = valueAndGrad((y: readonly Value[]) => {
          const parts = lossOf(y);
          return add(parts.policy, mul(parts.fit, options["valueWeight"]!));
        })(x);
        return [[policy, mul(fit, options["valueWeight"]!)], slope];
      }) as never,
      [flat(take(logps!)), flat(take(predicted!))],
      fixed,
    );
    expect(count).toBe(fixed.old.size);
    allclose(losses[0]!, tensorOf(recorded.ppo["policyLoss"]!), tolerance.float32, "policy");
    allclose(losses[1]!, tensorOf(recorded.ppo["valueLoss"]!), tolerance.float32, "value");
    allclose(slopes[0]!, flat(take(tensorOf(gradient["logps"]!))), tolerance.float32);
    allclose(slopes[1]!, flat(take(tensorOf(gradient["predicted"]!))), tolerance.float32);
  });
});
