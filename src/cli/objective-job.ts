/** What an objective adds to a fine-tuning: its sets, its trainee, and who makes the steps. */
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import type { OptionValues } from "./command.ts";
import {
  type Adapter,
  type AnyExampleSet,
  type Backend,
  type Example,
  type ExampleSet,
  type FinetuneOptions,
  Finetuner,
  type Host,
  OptionError,
  type PolicyPrompt,
  PolicyTrainer,
  type PreparedData,
  type PromptOptions,
  precomputeReference,
  preferenceSet,
  prepareData,
  promptSet,
  type ReadExamplesOptions,
  Rng,
  replaySet,
  rewardByName,
  stopIdsOf,
  type Trainee,
  type Tuner,
  withObjective,
  withReference,
} from "./library.ts";
import { type OpenedModel, openModel } from "./models.ts";
import type { ChosenObjective } from "./objectives.ts";
import type { Output } from "./output.ts";

/** Sets and trainee as the objective has them. */
export interface ObjectiveJob {
  readonly trainee: Trainee;
  readonly train: AnyExampleSet;
  readonly heldOut: AnyExampleSet;
  /** What a run judges by while training. */
  readonly judged: AnyExampleSet;
  makeTuner(signal: AbortSignal): Promise<Tuner & { release(): Promise<void> }>;
}

/** A model that another option than --model names. */
async function otherModel(
  host: Host,
  options: OptionValues,
  option: string,
  opened: OpenedModel,
): Promise<OpenedModel> {
  const other = await openModel(host, options[option] as string);
  if (other.model.sizes.vocabSize === opened.model.sizes.vocabSize) return other;
  throw new OptionError(
    `finetune: --${option} has ${other.model.sizes.vocabSize} tokens and the model ${opened.model.sizes.vocabSize} — both must share one tokenizer.`,
  );
}

async function withReferenceOf(
  host: Host,
  options: OptionValues,
  objective: ChosenObjective,
  opened: OpenedModel,
  trainee: Trainee,
): Promise<Trainee> {
  const how = (options["reference"] as string | undefined) ?? "step";
  if (!objective.hasReference || how === "recorded") return trainee;
  if (how !== "step") {
    const { params } = await otherModel(host, options, "reference", opened);
    return withReference(trainee, params);
  }
  // A policy without a KL term never asks for it.
  const isAsked = objective.name !== "grpo" || Number(options["beta"] ?? 0) > 0;
  return trainee.adapt || !isAsked ? trainee : withReference(trainee, opened.params);
}

/** Prompts of examples: what stands before the first token that carries loss. */
async function promptsOf(
  set: ExampleSet,
  { tokenizer, model }: OpenedModel,
): Promise<PolicyPrompt[]> {
  const all = await set.get(Array.from({ length: set.count }, (_, i) => i));
  return all.flatMap((example: Example): PolicyPrompt[] => {
    const start = example.mask.indexOf(1);
    if (start < 1 || start >= model.sizes.maxPositions) return [];
    const ids = example.ids.slice(0, start);
    const text = (part: Int32Array): string => tokenizer.decode(part, { skipSpecial: true });
    return [{ ids, prompt: text(ids), expected: text(example.ids.subarray(start)), example }];
  });
}

async function rewardOf(host: Host, options: OptionValues) {
  const names = options["reward"] as string | undefined;
  if (names === undefined) {
    throw new OptionError(
      `finetune: --objective ${options["objective"] as string} needs --reward: exact, number, json, length, or a sum as number+0.1*length.`,
    );
  }
  const path = options["reward-schema"] as string | undefined;
  let schema: JsonObject | undefined;
  if (path !== undefined) {
    const value = parseJson(await host.files.readBytes(path, 2 ** 20), path);
    if (!isJsonObject(value)) throw new OptionError(`${path}: a JSON schema must be an object.`);
    schema = value;
  }
  const target = options["reward-length"] as number | undefined;
  return rewardByName(names, {
    ...(schema && { schema }),
    ...(target !== undefined && { target }),
  });
}

/** What `openObjective` needs of the job. */
export interface ObjectiveNeeds {
  readonly opened: OpenedModel;
  readonly adapter: Adapter | undefined;
  readonly trainee: Trainee;
  readonly data: PreparedData;
  readonly backend: Backend;
  readonly settings: FinetuneOptions;
  readonly prompts: PromptOptions;
  readonly read: ReadExamplesOptions;
  readonly maxLength: number;
  readonly spillFolder: string;
}

/** Sets, trainee and tuner of an objective. */
export async function openObjective(
  host: Host,
  output: Output,
  options: OptionValues,
  objective: ChosenObjective,
  needs: ObjectiveNeeds,
): Promise<ObjectiveJob> {
  const { opened, data, backend, settings } = needs;
  const seed = settings.seed ?? 0;
  const teacher =
    objective.hasTeacher && options["teacher"] !== undefined
      ? await otherModel(host, options, "teacher", opened)
      : undefined;
  const making = objective.making(opened.model, teacher);
  const based = await withReferenceOf(host, options, objective, opened, needs.trainee);
  if (objective.policy) {
    const method = objective.policy(making);
    const [train, heldOut] = [
      await promptsOf(data.train, opened),
      await promptsOf(data.heldOut, opened),
    ];
    const reward = method.usesReward ? await rewardOf(host, options) : undefined;
    const number = (name: string, otherwise: number): number =>
      (options[name] as number | undefined) ?? otherwise;
    return {
      trainee: based,
      train: data.train,
      heldOut: data.heldOut,
      judged: promptSet(heldOut),
      makeTuner: (signal) => {
        const { packing: _, accumulate: _parts, onStep: _on, ...training } = settings;
        return PolicyTrainer.create(based, train, backend, {
          ...training,
          method,
          decode: (ids) => opened.tokenizer.decode(ids, { skipSpecial: true }),
          ...(reward && { reward }),
          iterations: number("iterations", objective.name === "ppo" ? 4 : 1),
          partSize: Math.max(1, Math.ceil((settings.batchSize ?? 16) / (settings.accumulate ?? 1))),
          maxNewTokens: number("max-new-tokens", 64),
          temperature: number("temperature", 1),
          stopIds: stopIdsOf(opened.tokenizer, needs.prompts.chat),
          signal,
        }) as Promise<Tuner & { release(): Promise<void> }>;
      },
    };
  }
  const trainee = withObjective(based, objective.make!(making), new Rng(seed));
  const { train, heldOut } = await setsOf(host, output, options, objective, needs, trainee);
  return {
    trainee,
    train,
    heldOut,
    judged: heldOut,
    makeTuner: () => Finetuner.create(trainee, train, backend, settings),
  };
}

async function setsOf(
  host: Host,
  output: Output,
  options: OptionValues,
  objective: ChosenObjective,
  { data, backend, opened, prompts, maxLength, read, spillFolder }: ObjectiveNeeds,
  trainee: Trainee,
): Promise<{ train: AnyExampleSet; heldOut: AnyExampleSet }> {
  if (objective.data === "preference") {
    const [train, heldOut] = [preferenceSet(data.train), preferenceSet(data.heldOut)];
    if (options["reference"] !== "recorded") return { train, heldOut };
    const record = async (set: typeof train): Promise<AnyExampleSet> =>
      (await precomputeReference(trainee, set, backend, {
        onProgress: (done) => output.progress(`Reference: ${done} of ${set.count} pairs`),
      }))!;
    return { train: await record(train), heldOut: await record(heldOut) };
  }
  if (options["reference"] === "recorded") {
    throw new OptionError(
      `finetune: --reference recorded is of dpo and ipo — ${objective.name} compares answers that change with the batch.`,
    );
  }
  const replay = options["replay"] as string | undefined;
  if (replay === undefined) {
    if (options["replay-share"] === undefined) return { train: data.train, heldOut: data.heldOut };
    throw new OptionError("finetune: --replay-share needs --replay <file>, the text to replay.");
  }
  const general = await prepareData(host.files, replay, opened.tokenizer, {
    ...prompts,
    ...(read.format !== undefined && read.format !== "auto" && { format: read.format }),
    maxLength,
    lossOn: "all",
    share: 0,
    keepRaw: 0,
    spillFolder: host.files.join(spillFolder, "replay"),
  });
  await general.heldOut.close();
  const share = options["replay-share"] as number | undefined;
  const train = replaySet(data.train, general.train, share === undefined ? {} : { share });
  return { train, heldOut: data.heldOut };
}
