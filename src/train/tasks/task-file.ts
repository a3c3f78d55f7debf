/** task.json in an adapter's folder: what PEFT's files do not say of the head beside it. */
import { FormatError, MissingError } from "../../errors.ts";
import type { Files } from "../../host/host.ts";
import { isJsonObject, parseJson } from "../../io/json.ts";
import type { EncoderHead, HeadTask, ProblemType } from "../../models/model.ts";

const name = "task.json";
const limit = 2 ** 24;
const tasks: readonly HeadTask[] = ["masked-lm", "sequence-classification", "token-classification"];
const problems: readonly ProblemType[] = [
  "single_label_classification",
  "multi_label_classification",
  "regression",
];

/** What a head is for, and the names of its outputs in order. */
export type TaskFile = Pick<EncoderHead, "task" | "labels" | "problem">;

export function writeTaskFile(files: Files, folder: string, head: TaskFile): Promise<void> {
  const { task, labels, problem } = head;
  const text = `${JSON.stringify({ task, labels, problem }, null, 2)}\n`;
  return files.writeText(files.join(folder, name), text);
}

/**
 * @throws MissingError when the folder has none, FormatError when it holds something else.
 */
export async function readTaskFile(files: Files, folder: string): Promise<TaskFile> {
  const path = files.join(folder, name);
  if (!(await files.info(path))) {
    throw new MissingError(
      `${folder}: has no ${name}, which names the classes of the head — write it as {"task": "sequence-classification", "labels": ["…"]}.`,
      { path },
    );
  }
  const json = parseJson(await files.readBytes(path, limit), path);
  const fields = isJsonObject(json) ? json : {};
  const { task, labels, problem = "single_label_classification" } = fields;
  const isGood =
    tasks.includes(task as HeadTask) &&
    problems.includes(problem as ProblemType) &&
    Array.isArray(labels) &&
    labels.every((label) => typeof label === "string");
  if (isGood) {
    return {
      task: task as HeadTask,
      labels: labels as readonly string[],
      problem: problem as ProblemType,
    };
  }
  throw new FormatError(
    `${path}: must hold a task (${tasks.join(", ")}), labels (a list of names) and a problem (${problems.join(", ")}).`,
    { path },
  );
}
