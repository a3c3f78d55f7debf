/** What an objective adds to a fine-tuning: its sets, its trainee, and who makes the steps. */
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import type { ChosenMethods, ChosenObjective } from "./choose-methods.ts";
import type { OptionValues } from "./command.ts";
import {
  type AnyExampleSet,
  type Backend,
  type Example,
  type ExampleSet,
  type FinetuneOptions,
  Finetuner,
  type Host,
  loadAdapter,
  OptionError,
  type OtherModel,
  type PolicyOptions,
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
  rewardByName,
  stopIdsOf,
  type Trainee,
  type Tuner,
  withObjective,
  withReference,
} from "./library.ts";
import { flagName } from "./method-flags.ts";
import { type OpenedModel, openModel } from "./models.ts";
import type { Output } from "./output.ts";

/** Sets and trainee as the objective has them. */
export interface ObjectiveJob {
  readonly trainee: Trainee;
  readonly train: AnyExampleSet;
  readonly heldOut: AnyExampleSet;
  /** What a run judges by while training. */
  readonly judged: AnyExampleSet;
  /** Of a training on own answers: what is asked, and how it learns. */
  readonly policy?: { readonly prompts: readonly PolicyPrompt[]; readonly options: PolicyOptions };
  makeTuner(signal: AbortSignal): Promise<Tuner & { release(): Promise<void> }>;
}

/**
 * A model that another option than --model names: a folder or a name on the hub, and after a plus an adapter
 * on it, whose effect is written into the weights here.
 */
async function otherModel(
  host: Host,
  options: OptionValues,
  option: string,
  opened: OpenedModel,
): Promise<OtherModel> {
  const text = options[option] as string;
  // A folder may have a plus in its name.
  const at = (await host.files.info(text)) ? -1 : text.lastIndexOf("+");
  const other = await openModel(host, at < 0 ? text : text.slice(0, at));
  if (other.model.sizes.vocabSize !== opened.model.sizes.vocabSize) {
    throw new OptionError(
      `finetune: --${option} has ${other.model.sizes.vocabSize} tokens and the model ${opened.model.sizes.vocabSize} — both must share one tokenizer.`,
    );
  }
  if (at < 0) return { model: other.model, params: other.params };
  const folder = text.slice(at + 1);
  const { adapter, params, buffers } = await loadAdapter(host.files, folder, other.model);
  if (adapter.mergeable === "no") {
    throw new OptionError(
      `finetune: --${option}: the ${adapter.title} adapter in ${folder} cannot be written into its base — give a model of its own.`,
    );
  }
  const merged = { ...other.params, ...adapter.merge(other.params, params, buffers) };
  return { model: other.model, params: merged };
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
  const isThere = trainee.adapt && !trainee.adapter?.replaces?.length;
  return isThere ? trainee : withReference(trainee, opened.params);
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
  methods: ChosenMethods,
  needs: ObjectiveNeeds,
): Promise<ObjectiveJob> {
  const { opened, data, backend, settings } = needs;
  const { objective } = methods;
  const others: Record<string, OtherModel> = {};
  for (const name of objective.models) {
    others[name] = await otherModel(host, options, flagName(name), opened);
  }
  const scene = { model: opened.model, others };
  const based = await withReferenceOf(host, options, objective, opened, needs.trainee);
  if (objective.policy) {
    const { method, ...playing } = objective.policy.make(scene, objective.options);
    const [train, heldOut] = [
      await promptsOf(data.train, opened),
      await promptsOf(data.heldOut, opened),
    ];
    const reward = objective.policy.usesReward ? await rewardOf(host, options) : undefined;
    const { packing: _, accumulate: _parts, onStep: _on, ...training } = settings;
    const play: PolicyOptions = {
      ...training,
      ...playing,
      method,
      decode: (ids) => opened.tokenizer.decode(ids, { skipSpecial: true }),
      ...(reward && { reward }),
      partSize: Math.max(1, Math.ceil((settings.batchSize ?? 16) / (settings.accumulate ?? 1))),
      stopIds: stopIdsOf(opened.tokenizer, needs.prompts.chat),
    };
    return {
      trainee: based,
      train: data.train,
      heldOut: data.heldOut,
      judged: promptSet(heldOut),
      policy: { prompts: train, options: play },
      makeTuner: (signal) =>
        PolicyTrainer.create(based, train, backend, { ...play, signal }) as Promise<
          Tuner & { release(): Promise<void> }
        >,
    };
  }
  const made = objective.objective!.make(scene, objective.options);
  const trainee = withObjective(based, made, new Rng(settings.seed ?? 0));
  const { train, heldOut } = await setsOf(host, output, options, methods, needs, trainee);
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
  { objective, dataPolicy }: ChosenMethods,
  { data, backend, opened, prompts, maxLength, read, settings, spillFolder }: ObjectiveNeeds,
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
  if (!dataPolicy) return { train: data.train, heldOut: data.heldOut };
  const files: Record<string, AnyExampleSet> = {};
  for (const name of dataPolicy.role.files ?? []) {
    const more = await prepareData(
      host.files,
      options[flagName(name)] as string,
      opened.tokenizer,
      {
        ...prompts,
        ...(read.format !== undefined && read.format !== "auto" && { format: read.format }),
        maxLength,
        lossOn: "all",
        share: 0,
        keepRaw: 0,
        spillFolder: host.files.join(spillFolder, name),
      },
    );
    await more.heldOut.close();
    files[name] = more.train;
  }
  const scene = { train: data.train, files, rng: new Rng(settings.seed ?? 0).fold("curriculum") };
  return { train: await dataPolicy.role.apply(scene, dataPolicy.options), heldOut: data.heldOut };
}
