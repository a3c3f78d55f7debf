/** The tasks that class texts and words, and the one that guesses hidden words. */
import {
  type ClassExample,
  encodeLabelled,
  encodePlain,
  encodeTagged,
  type MaskableExample,
  type TokenClassExample,
  taskSet,
} from "../../data/task-examples.ts";
import {
  type LabelledText,
  type LabelSet,
  labelSet,
  type PlainText,
  type TaggedWords,
  tagNames,
  taskFields,
  toLabelledText,
  toPlainText,
  toTaggedWords,
} from "../../data/tasks.ts";
import { textFrame } from "../../data/text-frame.ts";
import type { Tokenizer } from "../../data/tokenizer.ts";
import { OptionError } from "../../errors.ts";
import { EncoderRunner } from "../../infer/encoder-run.ts";
import { classificationScores, multiLabelScores } from "../../infer/metrics/classification.ts";
import { pearson, spearman } from "../../infer/metrics/correlation.ts";
import { entityScores } from "../../infer/metrics/entities.ts";
import { reshape } from "../../ir/layout.ts";
import { headedModel, modulesToTrain } from "../../models/headed.ts";
import type { HeadConfig, Headed } from "../../models/heads.ts";
import type { EncoderModel, PretrainedModel } from "../../models/model.ts";
import { poolTokens } from "../../models/pooling.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { maskedLm } from "./masked-lm.ts";
import { sequenceClassification } from "./sequence-classification.ts";
import {
  lossOf,
  type MeasureOptions,
  readSides,
  type TaskKind,
  type TaskOptions,
  weightsOf,
} from "./task.ts";
import { tokenClassification } from "./token-classification.ts";

interface Loaded {
  readonly model: PretrainedModel;
  readonly params: TensorRecord;
}

/** Labels that are given, or the head's when a model is judged. */
function givenLabels(
  { model }: Loaded,
  task: HeadConfig["task"],
  options: TaskOptions,
): readonly string[] | undefined {
  const head = model.kind === "encoder" ? (model as EncoderModel).head : undefined;
  if (options.judgeOnly && head?.task !== task) {
    throw new OptionError(
      `${task}: the ${model.family} has no head for it — fine-tune it with --task ${task} first.`,
    );
  }
  if (options.judgeOnly) return head!.labels;
  return options.labels;
}

/** The model as it is when judged, with the head otherwise. */
function headed(loaded: Loaded, head: HeadConfig, options: TaskOptions): Headed<EncoderModel> {
  if (options.judgeOnly) {
    return { model: loaded.model as EncoderModel, params: loaded.params, fresh: [] };
  }
  return headedModel(loaded.model, loaded.params, head, options.rng);
}

function encodingOf(
  tokenizer: Tokenizer,
  { model }: { readonly model: EncoderModel },
  { maxLength = 256 }: TaskOptions,
) {
  return {
    tokenizer,
    frame: textFrame(tokenizer),
    maxLength: Math.min(maxLength, model.sizes.maxPositions),
  };
}

function largest(row: ArrayLike<number>, start: number, count: number): number {
  let best = 0;
  for (let i = 1; i < count; i++) if (row[start + i]! > row[start + best]!) best = i;
  return best;
}

const textOf = ({ text, pair }: LabelledText): string =>
  pair === undefined ? text : `${text}\n${pair}`;

export const sequenceClassificationKind: TaskKind = {
  name: "sequence-classification",
  about: "the class of a text or of a pair of texts; several classes; or a number",
  data: '"text" (and "pair") or "premise" and "hypothesis", and "label"',
  async open(files, loaded, tokenizer, path, options) {
    const task = "sequence-classification";
    const given = givenLabels(loaded, task, options);
    const sides = await readSides(
      files,
      path,
      taskFields.labelled,
      toLabelledText,
      textOf,
      options,
    );
    const all = [...sides.train, ...sides.heldOut];
    const isNumber =
      options.judgeOnly && (loaded.model as EncoderModel).head!.problem === "regression";
    const labels: LabelSet = isNumber
      ? { problem: "regression", names: given! }
      : labelSet(all, given);
    const { problem, names } = labels;
    const made = headed(loaded, { task, labels: names, problem }, options);
    const encoding = encodingOf(tokenizer, made, options);
    const encode = (list: readonly LabelledText[]): ClassExample[] =>
      list.map((example) => encodeLabelled(example, labels, encoding));
    const [train, heldOut] = [encode(sides.train), encode(sides.heldOut)];
    const { model } = made;
    const set = (list: readonly ClassExample[]) =>
      taskSet(list, ({ ids, types, target }) => ({
        length: ids.length,
        loss: 1,
        all: [ids, types ?? [], typeof target === "number" ? [target] : target],
      }));
    const heldOutSet = set(heldOut);
    return {
      ...made,
      modules: modulesToTrain(made),
      taskType: "SEQ_CLS",
      objective: sequenceClassification(model, {
        ...(options.labelSmoothing !== undefined && { labelSmoothing: options.labelSmoothing }),
      }),
      train: set(train),
      heldOut: heldOutSet,
      cut: [...train, ...heldOut].filter(({ isCut }) => isCut).length,
      about:
        problem === "regression"
          ? "a number"
          : `${names.length} classes: ${names.slice(0, 8).join(", ")}`,
      files: {},
      measure: async (trainee, backend, how = {}) => {
        const { loss } = await lossOf(trainee, heldOutSet, backend, how);
        const { params, adapter } = weightsOf(trainee);
        const runner = new EncoderRunner(
          model,
          params,
          backend,
          ({ context, hidden, mask }) =>
            model.head!.forward(
              context,
              poolTokens(hidden, mask, model.head!.reads === "last" ? "last" : "cls"),
            ),
          adapter,
        );
        try {
          const rows = await runner.run(heldOut, runOptions(how));
          return { ...classMeasures(heldOut, rows, labels), loss };
        } finally {
          await runner.release();
        }
      },
    };
  },
};

function runOptions({ batchSize, signal }: MeasureOptions): MeasureOptions {
  return { ...(batchSize !== undefined && { batchSize }), ...(signal && { signal }) };
}

function classMeasures(
  examples: readonly ClassExample[],
  rows: readonly Float32Array[],
  { problem, names }: LabelSet,
): Record<string, number> {
  if (problem === "regression") {
    const truth = examples.map(({ target }) => target as number);
    const answers = rows.map((row) => row[0]!);
    const squares = truth.reduce((sum, t, i) => sum + (t - answers[i]!) ** 2, 0);
    const several = truth.length >= 2;
    return {
      ...(several && { spearman: spearman(truth, answers), pearson: pearson(truth, answers) }),
      meanSquaredError: squares / truth.length,
    };
  }
  if (problem === "multi_label_classification") {
    const { microF1, macroF1, exact } = multiLabelScores(
      examples.map(({ target }) => target as Float32Array),
      rows.map((row) => row.map((logit) => (logit > 0 ? 1 : 0))),
    );
    return { microF1, macroF1, exact };
  }
  const { accuracy, macroF1, weightedF1, matthews } = classificationScores(
    examples.map(({ target }) => target as number),
    rows.map((row) => largest(row, 0, names.length)),
    names.length,
  );
  return { accuracy, macroF1, weightedF1, matthews };
}

export const tokenClassificationKind: TaskKind = {
  name: "token-classification",
  about: "a tag for each word, as of names in a text (B-, I-, O)",
  data: '"tokens" and "tags", or lines of a word and its tag with blank lines between texts',
  async open(files, loaded, tokenizer, path, options) {
    const task = "token-classification";
    const given = givenLabels(loaded, task, options);
    const of = ({ words }: TaggedWords): string => words.join(" ");
    const sides = await readSides(files, path, taskFields.tagged, toTaggedWords, of, options);
    const names = tagNames([...sides.train, ...sides.heldOut], given);
    const problem = "single_label_classification";
    const made = headed(loaded, { task, labels: names, problem }, options);
    const encoding = encodingOf(tokenizer, made, options);
    const encode = (list: readonly TaggedWords[]): TokenClassExample[] =>
      list.map((example) => encodeTagged(example, names, encoding));
    const [train, heldOut] = [encode(sides.train), encode(sides.heldOut)];
    const set = (list: readonly TokenClassExample[]) =>
      taskSet(list, ({ ids, labels }) => ({
        length: ids.length,
        loss: labels.reduce((sum, label) => sum + (label >= 0 ? 1 : 0), 0),
        all: [ids, labels],
      }));
    const heldOutSet = set(heldOut);
    const { model } = made;
    const isIob = names.every((name) => name === "O" || /^[BI]-./.test(name));
    return {
      ...made,
      modules: modulesToTrain(made),
      taskType: "TOKEN_CLS",
      objective: tokenClassification(model, {
        ...(options.labelSmoothing !== undefined && { labelSmoothing: options.labelSmoothing }),
      }),
      train: set(train),
      heldOut: heldOutSet,
      cut: [...train, ...heldOut].filter(({ isCut }) => isCut).length,
      about: `${names.length} tags: ${names.slice(0, 8).join(", ")}`,
      files: {},
      measure: async (trainee, backend, how = {}) => {
        const { loss, accuracy } = await lossOf(trainee, heldOutSet, backend, how);
        const { params, adapter } = weightsOf(trainee);
        const runner = new EncoderRunner(
          model,
          params,
          backend,
          ({ context, hidden, mask }) => {
            const [batch, length] = mask.shape as [number | string, number];
            const logits = model.head!.forward(context, hidden);
            return reshape(logits, [batch, length * names.length]);
          },
          adapter,
        );
        try {
          const rows = await runner.run(heldOut, runOptions(how));
          const tags = (example: TokenClassExample, pick: (i: number) => number): string[] =>
            [...example.labels].flatMap((label, i) => (label < 0 ? [] : [names[pick(i)]!]));
          const truth = heldOut.map((example) => tags(example, (i) => example.labels[i]!));
          const answers = heldOut.map((example, row) =>
            tags(example, (i) => largest(rows[row]!, i * names.length, names.length)),
          );
          if (!isIob) return { accuracy, loss };
          const { f1, precision, recall, macroF1 } = entityScores(truth, answers);
          return { f1, precision, recall, macroF1, accuracy, loss };
        } finally {
          await runner.release();
        }
      },
    };
  },
};

export const maskedLmKind: TaskKind = {
  name: "masked-lm",
  about: "hidden words from those around them, to go on with an encoder's training",
  data: '"text"',
  async open(files, loaded, tokenizer, path, options) {
    const task = "masked-lm";
    givenLabels(loaded, task, options);
    const of = ({ text }: PlainText): string => text;
    const sides = await readSides(files, path, taskFields.plain, toPlainText, of, options);
    const head = { task, labels: [], problem: "single_label_classification" } as const;
    const made = headed(loaded, head, options);
    const maskId = tokenizer.maskId;
    if (maskId === undefined) {
      throw new OptionError("masked-lm: the tokenizer has no mask_token in tokenizer_config.json.");
    }
    const encoding = encodingOf(tokenizer, made, options);
    const encode = (list: readonly PlainText[]): MaskableExample[] =>
      list.map((example) => encodePlain(example, encoding)).filter(({ kept }) => kept > 0);
    const [train, heldOut] = [encode(sides.train), encode(sides.heldOut)];
    const set = (list: readonly MaskableExample[]) =>
      taskSet(list, ({ ids, kept }) => ({ length: ids.length, loss: kept, all: [ids] }));
    const heldOutSet = set(heldOut);
    return {
      ...made,
      modules: modulesToTrain(made),
      taskType: undefined,
      objective: maskedLm(made.model, {
        maskId,
        ...(options.maskShare !== undefined && { share: options.maskShare }),
      }),
      train: set(train),
      heldOut: heldOutSet,
      cut: [...train, ...heldOut].filter(({ isCut }) => isCut).length,
      about: `${(100 * (options.maskShare ?? 0.15)).toFixed(0)} % of the tokens are hidden`,
      files: {},
      measure: async (trainee, backend, how = {}) => {
        const { loss, accuracy } = await lossOf(trainee, heldOutSet, backend, how);
        return { accuracy, perplexity: Math.exp(loss), loss };
      },
    };
  },
};
