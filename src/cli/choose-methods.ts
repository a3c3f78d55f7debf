/** Which methods options name, with their own options checked: what a fine-tuning is put together from. */
import type { OptionValues } from "./command.ts";
import {
  type AnyMethod,
  type GivenOptions,
  type LanguageModel,
  methodFor,
  methodsWith,
  OptionError,
  parseNamed,
  partsOf,
  type RawExample,
  type RoleName,
  readOptions,
} from "./library.ts";
import { flagName, flagUsers, modelFlags } from "./method-flags.ts";

type Role<R extends RoleName> = NonNullable<AnyMethod["roles"][R]>;

/** A method in one of its roles. */
export interface Choice<R extends RoleName> {
  readonly method: AnyMethod;
  readonly role: Role<R>;
  /** Checked, with defaults. */
  readonly options: GivenOptions;
  /** What was asked for beside the defaults, as `rank=4, alpha=8`. */
  readonly said: string;
}

/** The methods of a fine-tuning. */
export interface Choices {
  readonly adapter: Choice<"adapter"> | undefined;
  readonly initialiser: Choice<"initialiser"> | undefined;
  readonly dataPolicy: Choice<"dataPolicy"> | undefined;
}

const where = "finetune";

/** A flag's value as the description of options reads it: commas and `=` stand for `+` and `:`. */
function asOption(value: OptionValues[string]): unknown {
  if (Array.isArray(value)) {
    const entries = value.map((text: string) => {
      const at = text.indexOf("=");
      if (at < 1) throw new OptionError(`${where}: "${text}" must be <name>=<number>.`);
      return [text.slice(0, at), text.slice(at + 1)] as const;
    });
    return Object.fromEntries(entries);
  }
  return value;
}

/** Names separated by commas, of options that are lists. */
function asList(value: unknown, type: string): unknown {
  const isList = type === "list" || type === "numbers";
  return isList && typeof value === "string" ? value.replaceAll(",", "+") : value;
}

/** The method that a text names, in one of the roles, with the options of the text. */
function named(flag: string, text: string, roles: readonly RoleName[]): [AnyMethod, GivenOptions] {
  const { id, options } = parseNamed(`${where}: --${flag}`, text);
  return [methodFor(`${where}: --${flag}`, id, roles), options];
}

/**
 * The options that flags give to methods; what a method's own text says stands above them.
 * @throws OptionError for a flag that none of the chosen methods has, or several have.
 */
function fromFlags(
  values: OptionValues,
  chosen: readonly AnyMethod[],
  passed: ReadonlySet<string>,
): Map<AnyMethod, Record<string, unknown>> {
  const found = new Map(chosen.map((method) => [method, {} as Record<string, unknown>]));
  for (const [flag, users] of flagUsers) {
    const value = values[flag];
    if (value === undefined || passed.has(flag)) continue;
    const own = users.filter(({ method }) => chosen.includes(method));
    const ids = users.map(({ method }) => method.id);
    if (own.length === 0) {
      const file = users.flatMap(({ method }) => method.roles.dataPolicy?.files ?? [])[0];
      if (file !== undefined) {
        throw new OptionError(
          `${where}: --${flag} needs --${flagName(file)} <file>, further examples.`,
        );
      }
      const here = chosen.map(({ id }) => id).join(" and ");
      throw new OptionError(
        `${where}: --${flag} is no option of ${here} — it is of ${ids.join(", ")}.`,
      );
    }
    if (own.length > 1) {
      throw new OptionError(
        `${where}: --${flag} is an option of ${own.map(({ method }) => method.id).join(" and ")} — write it with the method that is meant, as ${own[0]!.method.id}:${own[0]!.option}=${String(value)}.`,
      );
    }
    const { method, option, spec } = own[0]!;
    found.get(method)![option] = asList(asOption(value), spec.type);
  }
  return found;
}

function complete<R extends RoleName>(
  method: AnyMethod,
  role: R,
  options: GivenOptions,
): Choice<R> {
  const read = readOptions(method.id, method.options as never, options) as GivenOptions;
  const said = Object.keys(options).map((name) => {
    const value = read[name];
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    return `${name}=${text}`;
  });
  return { method, role: method.roles[role] as Role<R>, options: read, said: said.join(", ") };
}

/** Methods that plain options name, before their own options are read. */
function namesIn(values: OptionValues) {
  const isFull = values["full"] === true;
  const adapter = isFull ? undefined : named("adapter", values["adapter"] as string, ["adapter"]);
  const initText = values["init"] as string | undefined;
  const initialiser = initText === undefined ? undefined : named("init", initText, ["initialiser"]);
  if (initialiser && !adapter) {
    throw new OptionError(
      `${where}: --init ${initialiser[0].id} gives an adapter its first numbers — leave --full out.`,
    );
  }
  if (initialiser && adapter![0].roles.adapter!.kind !== "LORA") {
    throw new OptionError(
      `${where}: --init ${initialiser[0].id} gives LoRA its first numbers, and --adapter is ${adapter![0].id} — take --adapter lora.`,
    );
  }
  return { adapter, initialiser };
}

/** Adapter and initialiser of a task, whose objective is its own. */
export function chooseForTask(values: OptionValues): Choices {
  const { adapter, initialiser } = namesIn(values);
  const chosen = [adapter, initialiser].flatMap((one) => (one ? [one[0]] : []));
  // The task has this one itself.
  const own = fromFlags(values, chosen, new Set(["label-smoothing"]));
  return {
    adapter: adapter && complete(adapter[0], "adapter", { ...own.get(adapter[0]), ...adapter[1] }),
    initialiser:
      initialiser &&
      complete(initialiser[0], "initialiser", { ...own.get(initialiser[0]), ...initialiser[1] }),
    dataPolicy: undefined,
  };
}

/** An objective as options name it, before anything is opened. */
export interface ChosenObjective {
  /** As it was asked for. */
  readonly name: string;
  readonly method: AnyMethod;
  readonly options: GivenOptions;
  readonly said: string;
  /** One of these. */
  readonly objective: Role<"objective"> | undefined;
  readonly policy: Role<"policy"> | undefined;
  readonly data: Role<"objective">["data"];
  /** Names of the other models it takes. */
  readonly models: readonly string[];
  readonly hasReference: boolean;
  readonly readsLast: boolean;
  /** What `prepareData` is to do for it. */
  readonly reading: {
    readonly parts: (raw: RawExample) => readonly RawExample[];
    readonly keepsLabels: boolean;
  };
}

export interface ChosenMethods extends Choices {
  readonly objective: ChosenObjective;
}

/** Refuses what belongs to objectives of other properties than the chosen one. */
function checkObjective(
  values: OptionValues,
  chosen: ChosenObjective,
  isReferenced: boolean,
): void {
  const { name, policy, objective, data, models } = chosen;
  const notOf = (flag: string, has: (method: AnyMethod) => boolean): OptionError => {
    const ids = [...methodsWith("objective"), ...methodsWith("policy")]
      .filter(has)
      .map(({ id }) => id);
    return new OptionError(
      `${where}: --${flag} is not of --objective ${name} — it is of ${[...new Set(ids)].sort().join(", ")}.`,
    );
  };
  for (const flag of Object.keys(modelFlags())) {
    const has = (method: AnyMethod): boolean =>
      [...(method.roles.objective?.models ?? []), ...(method.roles.policy?.models ?? [])].some(
        (model) => flagName(model) === flag,
      );
    const isOwn = models.some((model) => flagName(model) === flag);
    if (isOwn && values[flag] === undefined) {
      throw new OptionError(
        `${where}: --objective ${name} needs --${flag} <folder>, a model to learn from.`,
      );
    }
    if (!isOwn && values[flag] !== undefined) throw notOf(flag, has);
  }
  if (values["reference"] !== undefined && !isReferenced) {
    throw notOf("reference", ({ roles }) =>
      Boolean(roles.objective?.hasReference ?? roles.policy?.hasReference),
    );
  }
  if (values["reference"] === "recorded" && !objective?.isRecordable) {
    throw new OptionError(
      `${where}: --reference recorded is of ${methodsWith("objective")
        .filter(({ roles }) => roles.objective.isRecordable)
        .map(({ id }) => id)
        .join(" and ")} — ${name} compares answers that change with the batch.`,
    );
  }
  for (const flag of ["reward", "reward-schema", "reward-length"]) {
    if (values[flag] === undefined || policy?.usesReward) continue;
    throw notOf(flag, ({ roles }) => roles.policy?.usesReward === true);
  }
  if (objective?.adapt && values["full"] === true) {
    throw new OptionError(
      `${where}: --objective ${name} trains a head beside an adapter — leave --full out.`,
    );
  }
  if (policy && values["packing"] === true) {
    throw new OptionError(`${where}: --objective ${name} packs no answers — leave --packing out.`);
  }
  const file = methodsWith("dataPolicy")
    .flatMap(({ roles }) => roles.dataPolicy.files ?? [])
    .find((one) => values[flagName(one)] !== undefined);
  if (file !== undefined && (policy || data !== "any")) {
    throw new OptionError(
      `${where}: --${flagName(file)} adds plain examples, and --objective ${name} learns from ${policy ? "its own answers" : "other data"} — leave it out.`,
    );
  }
}

/** The data policy that --curriculum names, or whose file is given. */
function dataPolicyIn(values: OptionValues): [AnyMethod, GivenOptions] | undefined {
  const text = values["curriculum"] as string | undefined;
  if (text !== undefined) return named("curriculum", text, ["dataPolicy"]);
  const found = methodsWith("dataPolicy").find(({ roles }) =>
    (roles.dataPolicy.files ?? []).some((name) => values[flagName(name)] !== undefined),
  );
  return found && [found, {}];
}

/**
 * The methods that options name.
 * @throws OptionError when an option is given that none of them has, or they do not go together.
 */
export function chooseMethods(values: OptionValues): ChosenMethods {
  const { adapter, initialiser } = namesIn(values);
  const name = values["objective"] as string;
  const objective = named("objective", name, ["objective", "policy"]);
  const dataPolicy = dataPolicyIn(values);
  const [method] = objective;
  const missing = dataPolicy?.[0].roles.dataPolicy?.files?.find(
    (file) => values[flagName(file)] === undefined,
  );
  if (missing !== undefined) {
    throw new OptionError(
      `${where}: ${dataPolicy![0].id} needs --${flagName(missing)} <file>, further examples.`,
    );
  }
  const all = [objective, adapter, initialiser, dataPolicy].flatMap((one) => (one ? [one[0]] : []));
  // With --full, what was said to an adapter has no meaning and is not looked at.
  const passed = new Set(
    values["full"] === true
      ? [...flagUsers]
          .filter(([, users]) => users.every((user) => user.method.roles.adapter))
          .map(([flag]) => flag)
      : [],
  );
  const shared = fromFlags(values, all, passed);
  const withFlags = ([one, own]: [AnyMethod, GivenOptions]): GivenOptions => ({
    ...shared.get(one),
    ...own,
  });
  const role = method.roles.policy ? "policy" : "objective";
  const { options, said } = complete(method, role, withFlags(objective));
  const learning = (method.roles.policy ?? method.roles.objective)!;
  const { hasReference = false, data, models = [] } = learning;
  const chosen: ChosenObjective = {
    name: parseNamed(where, name).id,
    method,
    options,
    said,
    policy: method.roles.policy,
    objective: method.roles.policy ? undefined : method.roles.objective,
    data,
    models,
    hasReference: typeof hasReference === "function" ? hasReference(options) : hasReference,
    readsLast: method.roles.objective?.readsLast ?? false,
    reading: {
      parts: (raw) => partsOf(raw, data, parseNamed(where, name).id),
      keepsLabels: data === "judged",
    },
  };
  checkObjective(values, chosen, hasReference !== false);
  return {
    adapter: adapter && complete(adapter[0], "adapter", withFlags(adapter)),
    initialiser: initialiser && complete(initialiser[0], "initialiser", withFlags(initialiser)),
    dataPolicy: dataPolicy && complete(dataPolicy[0], "dataPolicy", withFlags(dataPolicy)),
    objective: chosen,
  };
}

/** The adapter as an objective saves it. */
export function adaptedBy<A>({ objective }: ChosenObjective, adapter: A, model: LanguageModel): A {
  return (objective?.adapt?.(adapter as never, model) as A | undefined) ?? adapter;
}
