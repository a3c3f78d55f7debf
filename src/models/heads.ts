/** Heads on a model of texts: what config.json says of them, and a model made anew with another head. */
import { FormatError, OptionError } from "../errors.ts";
import { isJsonObject, type JsonValue } from "../io/json.ts";
import { Linear } from "../nn/linear.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { sameShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { EncoderHead, EncoderModel, HeadTask, PretrainedModel, ProblemType } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

/** Classes of one head; the largest data sets have some ten thousand. */
const maxLabels = 2 ** 17;

/** What config.json says of the head. */
export interface HeadConfig {
  readonly task: HeadTask;
  /** In the order of the outputs. */
  readonly labels: readonly string[];
  readonly problem: ProblemType;
}

const problems: readonly ProblemType[] = [
  "single_label_classification",
  "multi_label_classification",
  "regression",
];

/**
 * Labels by `id2label`, or as many as `num_labels` says; two without either, as in `transformers`.
 * @throws FormatError when ids are not 0 … n-1.
 */
export function readLabels(where: string, json: Json): string[] {
  const table = json["id2label"] as JsonValue | undefined;
  if (table === undefined || table === null) {
    const count = json["num_labels"] ?? 2;
    if (!Number.isInteger(count) || (count as number) < 1 || (count as number) > maxLabels) {
      throw new FormatError(
        `${where}: "num_labels" must be a whole number from 1 to ${maxLabels}, got ${JSON.stringify(count).slice(0, 40)}.`,
      );
    }
    return Array.from({ length: count as number }, (_, i) => `LABEL_${i}`);
  }
  const entries = isJsonObject(table) ? Object.entries(table) : [];
  const labels = entries.map((_, i) => {
    const label =
      isJsonObject(table) && Object.hasOwn(table, String(i)) ? table[String(i)] : undefined;
    if (typeof label === "string") return label;
    throw new FormatError(
      `${where}: "id2label" must map 0 to ${entries.length - 1} to names, ${i} has ${JSON.stringify(label ?? null)}.`,
    );
  });
  if (labels.length >= 1 && labels.length <= maxLabels) return labels;
  throw new FormatError(
    `${where}: "id2label" must hold 1 to ${maxLabels} names, got ${labels.length}.`,
  );
}

/**
 * The head that `architectures` names.
 * @param known class names of `transformers` and their heads; a name with none is the model alone
 * @throws OptionError for an architecture that is not known.
 */
export function readHead(
  where: string,
  json: Json,
  known: Readonly<Record<string, HeadTask | undefined>>,
  missing?: HeadTask,
): HeadConfig | undefined {
  const list = json["architectures"];
  const name = Array.isArray(list) && list.length > 0 ? (list[0] as unknown) : undefined;
  let task = missing;
  if (name !== undefined) {
    if (typeof name !== "string" || !Object.hasOwn(known, name)) {
      throw new OptionError(
        `${where}: architecture ${JSON.stringify(name)} is not supported — ${Object.keys(known).join(", ")} are.`,
      );
    }
    task = known[name];
  }
  if (!task) return undefined;
  if (task === "masked-lm") return { task, labels: [], problem: "single_label_classification" };
  const labels = readLabels(where, json);
  return { task, labels, problem: readProblem(where, json, task, labels) };
}

/**
 * What the labels mean, by `problem_type`; as in `transformers` one output alone is a number.
 * @throws OptionError for a type that is not known.
 */
export function readProblem(
  where: string,
  json: Json,
  task: HeadTask,
  labels: readonly string[],
): ProblemType {
  const given = json["problem_type"] ?? undefined;
  if (given !== undefined && !problems.includes(given as ProblemType)) {
    throw new OptionError(
      `${where}: problem_type ${JSON.stringify(given)} is not supported — ${problems.join(", ")} are.`,
    );
  }
  return (
    (given as ProblemType | undefined) ??
    (labels.length === 1 && task === "sequence-classification"
      ? "regression"
      : "single_label_classification")
  );
}

/** What config.json holds of a head. */
export function headJson(head: HeadConfig | undefined): Record<string, unknown> {
  if (!head || head.task === "masked-lm") return {};
  return {
    id2label: Object.fromEntries(head.labels.map((label, i) => [String(i), label])),
    label2id: Object.fromEntries(head.labels.map((label, i) => [label, i])),
    ...(head.task === "sequence-classification" && { problem_type: head.problem }),
  };
}

/** The class of `transformers` that has a head: the key of a table as `readHead` takes. */
export function architectureOf(
  known: Readonly<Record<string, HeadTask | undefined>>,
  task: HeadTask | undefined,
): string {
  const found = Object.keys(known).find((name) => known[name] === task);
  if (found !== undefined) return found;
  throw new OptionError(`a head for ${task ?? "nothing"} is not supported by this architecture.`);
}

/** Puts the children of a module into another as its own. */
export function childrenOf(module: Module): [name: string, child: Module][] {
  return [...module.modules()].filter(([path]) => path !== "" && !path.includes("."));
}

/**
 * The linear layers that adapters may sit on: as in PEFT all but the output layer of a classification,
 * which is trained itself.
 */
export function linearLayers(
  model: Module,
  head: Pick<EncoderHead, "task" | "modules"> | undefined,
): Map<string, Linear> {
  const own = head && head.task !== "masked-lm" ? head.modules : [];
  return new Map(
    [...model.modules()].flatMap(([path, module]): [string, Linear][] =>
      module instanceof Linear && !own.some((name) => `${path}.`.startsWith(`${name}.`))
        ? [[path, module]]
        : [],
    ),
  );
}

/** A model and its numbers after a change of its head. */
export interface Headed<M extends PretrainedModel> {
  readonly model: M;
  readonly params: TensorRecord;
  /** Paths of parameters that are new. */
  readonly fresh: readonly string[];
}

/**
 * Fills a model with the weights of another one that has the same body: paths are the same, but for the
 * name of the body, which stands before them where there is a head. What is not found is new.
 * @throws OptionError when nothing but new numbers would be in it.
 */
export function fillFrom<M extends PretrainedModel>(
  model: M,
  params: Readonly<Record<string, Tensor>>,
  rng: Rng,
): Headed<M> {
  const filled: TensorRecord = {};
  const fresh: string[] = [];
  // `bert.encoder…` and `encoder…` are the same.
  const byEnd = new Map<string, Tensor>();
  for (const [path, tensor] of Object.entries(params)) {
    byEnd.set(path, tensor);
    byEnd.set(path.slice(path.indexOf(".") + 1), tensor);
  }
  for (const [path, slot] of model.slots()) {
    const short = path.slice(path.indexOf(".") + 1);
    const found =
      params[path] ?? byEnd.get(path) ?? (path.split(".").length > 2 ? params[short] : undefined);
    if (found && sameShape(found.shape, slot.shape)) filled[path] = found;
    else {
      filled[path] = (model.init(rng).params as TensorRecord)[path]!;
      fresh.push(path);
    }
  }
  return { model, params: filled, fresh };
}

/** Whether a model is one that gives vectors. */
export function isEncoder(model: PretrainedModel): model is EncoderModel {
  return model.kind === "encoder";
}
