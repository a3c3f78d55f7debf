/** A reward model's folder: saved as an adapter with a head, and read back to the same rewards. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { parityBackend } from "../../../test/support/fixture.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { lora } from "../../adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import type { Example } from "../../data/example.ts";
import { nodeHost } from "../../host/node.ts";
import { EncoderRunner } from "../../infer/encoder-run.ts";
import { headedModel } from "../../models/headed.ts";
import { Llama } from "../../models/llama.ts";
import { poolTokens } from "../../models/pooling.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { TrainProgram } from "../program.ts";
import { traineeOf, withObjective } from "../trainee.ts";
import {
  loadRewardModel,
  type RewardModel,
  rewardAdapter,
  rewardModel,
  scorePath,
} from "./reward.ts";

const { files } = nodeHost();
const model = new Llama({
  vocabSize: 23,
  dModel: 16,
  dFeedForward: 24,
  nLayers: 2,
  nHeads: 2,
  maxPositions: 32,
  initializerRange: 0.3,
});
const { params: base } = model.init(new Rng(1));
const plain = lora(model, { rank: 2 });
const adapter = rewardAdapter(plain, model.sizes.dModel);
const params = adapter.init(new Rng(2));
for (const [name, { shape, size }] of Object.entries(params)) {
  if (name.includes("lora_B") || name === scorePath) {
    params[name] = new Tensor("float32", shape, new Rng(3).fold(name).normals(size, 0.5));
  }
}
const answer = (...ids: number[]): Example => ({
  ids: Int32Array.from(ids),
  mask: Uint8Array.from(ids, () => 1),
});
const pairs = [
  { chosen: answer(1, 2, 3, 4, 5), rejected: answer(1, 2, 9) },
  { chosen: answer(7, 8), rejected: answer(7, 3, 3, 3, 3, 11, 12) },
];
const texts = [...pairs.map(({ chosen }) => chosen), ...pairs.map(({ rejected }) => rejected)];

let scratch = "";
let folder = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-reward-"));
  folder = join(scratch, "reward");
  await saveAdapter(files, folder, adapter, params);
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

/** Rewards as the training computes them. */
async function trainedRewards(): Promise<number[]> {
  const objective = rewardModel({ dModel: model.sizes.dModel });
  const trainee = withObjective(traineeOf(model, base, { adapter, params }), objective);
  const program = new TrainProgram(trainee, await parityBackend());
  try {
    const batch = objective.batch(pairs as never[], { rows: 2 });
    const found = await program.inspect(batch, trainee.trained);
    return ["chosen", "rejected"].flatMap((side) => Array.from(found[side]!.numbers()));
  } finally {
    await program.release();
  }
}

/** Rewards as the head of a model of texts gives them. */
async function readRewards(headed: Pick<RewardModel, "model" | "params">, own: LoadedAdapter) {
  const runner = new EncoderRunner(
    headed.model,
    headed.params,
    await parityBackend(),
    ({ context, hidden, mask }) =>
      headed.model.head!.forward(context, poolTokens(hidden, mask, "last")),
    own,
  );
  try {
    return (await runner.run(texts)).map(([reward]) => reward!);
  } finally {
    await runner.release();
  }
}

it("gives the rewards that it was trained to give", async () => {
  const expected = await trainedRewards();
  expect(Math.max(...expected) - Math.min(...expected)).toBeGreaterThan(0.1);
  const loaded = await loadRewardModel(files, folder, { model, params: base });
  expect(loaded.adapter.params).toEqual(params);
  const rewards = await readRewards(loaded, loaded.adapter);
  for (const [i, reward] of rewards.entries()) expect(reward).toBeCloseTo(expected[i]!, 5);
});

it("loads as any adapter on the model with one class, and is saved again as it was", async () => {
  const head = { task: "sequence-classification", labels: ["r"], problem: "regression" } as const;
  const headed = headedModel(model, base, head, new Rng(5));
  const own = await loadAdapter(files, folder, headed.model);
  const expected = await trainedRewards();
  const rewards = await readRewards(headed, own);
  for (const [i, reward] of rewards.entries()) expect(reward).toBeCloseTo(expected[i]!, 5);
  const again = join(scratch, "again");
  await saveAdapter(files, again, own.adapter, own.params);
  expect(await files.readText(join(again, "adapter_config.json"))).toBe(
    await files.readText(join(folder, "adapter_config.json")),
  );
});

it("refuses an adapter without a head", async () => {
  const path = join(scratch, "plain");
  await saveAdapter(files, path, plain, plain.init(new Rng(2)));
  await expect(loadRewardModel(files, path, { model, params: base })).rejects.toThrow(
    `${path}: the adapter has no head "score", so it gives no rewards — train it with --objective reward.`,
  );
});
