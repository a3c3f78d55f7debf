/** The adapter that a fine-tuning trains: bound, with its first numbers, and as it is kept in the end. */
import { isJsonObject } from "../io/json.ts";
import type { Choices } from "./choose-methods.ts";
import {
  type Adapter,
  type AdapterNumbers,
  lora as bindLora,
  compareLogits,
  firstNumbers,
  type Host,
  type LanguageModel,
  type LoraAdapter,
  type LoraOptions,
  loadAdapter,
  OptionError,
  type OrtBackend,
  onWholeBase,
  type PrepareScene,
  type PretrainedModel,
  probeInputs,
  probeLogits,
  type Run,
  SafetensorsFile,
  StateError,
  type TensorRecord,
  type Tokenizer,
  takenFromBase,
  writeSafetensors,
} from "./library.ts";

/** An adapter that is about to be trained. */
export interface OpenedAdapter {
  readonly adapter: Adapter;
  readonly params: TensorRecord;
  readonly buffers: TensorRecord;
  /** The base beside which it is trained, where that is not the model as it is. */
  readonly base: TensorRecord | undefined;
  /** What is kept does on the base as it was exactly what was trained beside `base`. */
  readonly isKeptExactly: boolean;
  /** What the initialiser tells. */
  readonly report: Readonly<Record<string, unknown>> | undefined;
  /** What a run must keep to begin with the same numbers again; none where the seed gives them. */
  readonly start: AdapterStart | undefined;
  /** The adapter as it is kept: on the base as it was. */
  kept(numbers: AdapterNumbers): { readonly adapter: Adapter; readonly numbers: AdapterNumbers };
}

/** First numbers that data or weights gave. */
export interface AdapterStart extends AdapterNumbers {
  readonly lora: LoraOptions | undefined;
  readonly isTakenFromBase: boolean;
  readonly report: Readonly<Record<string, unknown>>;
}

const [factsName, numbersName] = ["start", "start.safetensors"];
const [paramPrefix, bufferPrefix] = ["params.", "buffers."];

/** Keeps first numbers in a run's folder. */
export async function saveStart(host: Host, run: Run, start: AdapterStart): Promise<void> {
  const { params, buffers, ...facts } = start;
  const named = (prefix: string, tensors: TensorRecord) =>
    Object.entries(tensors).map(([name, tensor]) => [prefix + name, tensor] as const);
  const all = [...named(paramPrefix, params), ...named(bufferPrefix, buffers)];
  await writeSafetensors(host.files, run.path(numbersName), all);
  // Last: a folder that has it has the numbers.
  await run.note(factsName, facts);
}

/** What an earlier start of the run kept. */
export async function loadStart(host: Host, run: Run): Promise<AdapterStart | undefined> {
  const facts = await run.noted(factsName);
  if (!isJsonObject(facts)) return undefined;
  const file = await SafetensorsFile.open(host.files, run.path(numbersName));
  const [params, buffers]: TensorRecord[] = [{}, {}];
  try {
    for (const name of file.entries.keys()) {
      const isParam = name.startsWith(paramPrefix);
      const into = isParam ? params! : buffers!;
      into[name.slice((isParam ? paramPrefix : bufferPrefix).length)] = await file.read(name);
    }
  } finally {
    await file.close();
  }
  const { lora, isTakenFromBase, report } = facts as unknown as AdapterStart;
  return { params: params!, buffers: buffers!, lora, isTakenFromBase, report };
}

/**
 * Binds the chosen adapter and gives it its first numbers.
 * @param scene the model and its data
 * @param options `dress` adds what is trained and kept beside it, as a head; `bits` of a quantised base, and
 * `floats` that it was made of; `start` is what an earlier start of the same run kept
 * @throws OptionError for methods that do not go together.
 */
export async function openAdapter(
  host: Host,
  { adapter: choice, initialiser }: Choices,
  scene: PrepareScene,
  options: {
    readonly dress?: (adapter: Adapter) => Adapter;
    readonly bits?: 4 | 8 | undefined;
    readonly floats?: TensorRecord;
    readonly start?: AdapterStart | undefined;
    /** A folder whose adapter is trained on. */
    readonly from?: string | undefined;
  } = {},
): Promise<OpenedAdapter | undefined> {
  if (!choice) return undefined;
  const { dress = (adapter) => adapter, bits, floats = scene.base, start: known, from } = options;
  const model = scene.model;
  const load = (path: string) => loadAdapter(host.files, path, model);
  const bind = async (own: object): Promise<Adapter> => choice.role.bind(model, own, { load });
  if (from !== undefined) {
    if (initialiser) {
      throw new OptionError(
        `finetune: --from-adapter begins with an adapter's numbers and --init ${initialiser.method.id} with others — leave one of them out.`,
      );
    }
    const earlier = await load(from);
    const { params, buffers = {} } = known ?? earlier;
    return {
      adapter: earlier.adapter,
      params,
      buffers,
      base: undefined,
      isKeptExactly: true,
      report: undefined,
      // The folder may be another one when the run goes on.
      start: { params, buffers, lora: undefined, isTakenFromBase: false, report: {} },
      kept: (trained) => ({ adapter: earlier.adapter, numbers: trained }),
    };
  }
  if (!initialiser) {
    const adapter = dress(await bind(choice.options));
    const numbers = known ?? (await firstNumbers(adapter, scene));
    return {
      adapter,
      params: numbers.params,
      buffers: numbers.buffers,
      base: undefined,
      isKeptExactly: true,
      report: undefined,
      start: adapter.prepare && {
        ...numbers,
        lora: undefined,
        isTakenFromBase: false,
        report: {},
      },
      kept: (trained) => ({ adapter, numbers: trained }),
    };
  }
  const { id } = initialiser.method;
  const refuse = (): OptionError =>
    new OptionError(
      `finetune: --init ${id} takes its numbers from the base's weights, which --load-in-${bits}bit keeps in ${bits} bits — leave one of them out.`,
    );
  if (bits !== undefined && initialiser.role.readsWeights) throw refuse();
  const { choosesBits = false } = initialiser.role;
  if (choosesBits && bits === undefined) {
    throw new OptionError(
      `finetune: --init ${id} finds a base in 4 or 8 bits together with LoRA — add --load-in-4bit.`,
    );
  }
  // A base in bits is found again: it follows from the weights and the seed.
  const own = choosesBits ? { ...scene, base: floats, bits } : scene;
  const found =
    (choosesBits ? undefined : known) ??
    (await initialiser.role.initialise(own, choice.options, initialiser.options));
  const { report, params: first } = found;
  const lora = found.lora!;
  const isTakenFromBase = found.isTakenFromBase ?? false;
  const quantized = "quantized" in found ? found.quantized : undefined;
  if (bits !== undefined && isTakenFromBase && !quantized) throw refuse();
  const plain = (await bind(lora)) as LoraAdapter;
  if (isTakenFromBase && !plain.isAdditive) {
    throw new OptionError(
      `finetune: --init ${id} takes its numbers from the base, which goes with plain LoRA alone — leave out ${choice.said}.`,
    );
  }
  const adapter = dress(plain);
  const { params, buffers } = await firstNumbers(adapter, scene, first);
  return {
    adapter,
    params,
    buffers,
    base: quantized
      ? { ...floats, ...quantized }
      : isTakenFromBase
        ? takenFromBase(scene.base, plain, params)
        : undefined,
    isKeptExactly: !quantized,
    report,
    start: { params, buffers, lora, isTakenFromBase, report },
    kept: (trained) => {
      if (!isTakenFromBase) return { adapter, numbers: trained };
      const whole = onWholeBase(plain, lora, params, trained.params);
      return {
        adapter: dress(bindLora(model, whole.lora)),
        numbers: { params: whole.params, buffers: trained.buffers },
      };
    },
  };
}

/** Largest difference of what is kept from what was trained, relative to the largest number. */
const tolerance = 1e-4;

/**
 * Asserts that an adapter as it is kept does on the base what the trained one does beside its own.
 * @param base as it was
 * @throws StateError when they differ: nothing is written then.
 */
export async function verifyKept(
  backend: OrtBackend,
  model: PretrainedModel,
  base: TensorRecord,
  opened: OpenedAdapter,
  trained: AdapterNumbers,
  tokenizer: Tokenizer | undefined,
): Promise<{ readonly adapter: Adapter; readonly numbers: AdapterNumbers }> {
  const kept = opened.kept(trained);
  if (!opened.base || !opened.isKeptExactly) return kept;
  const difference =
    model.kind === "causal-lm"
      ? await logitsApart(backend, model as LanguageModel, base, opened, trained, kept, tokenizer)
      : weightsApart(base, opened, trained, kept);
  if (!(difference <= tolerance)) {
    throw new StateError(
      `finetune: the adapter on the base as it was differs from the trained one by ${difference.toExponential(2)}, ${tolerance} is allowed — nothing was written; lower the learning rate.`,
      { difference },
    );
  }
  return kept;
}

type Kept = ReturnType<OpenedAdapter["kept"]>;

async function logitsApart(
  backend: OrtBackend,
  model: LanguageModel,
  base: TensorRecord,
  opened: OpenedAdapter,
  trained: AdapterNumbers,
  kept: Kept,
  tokenizer: Tokenizer | undefined,
): Promise<number> {
  const ids = probeInputs(model.sizes, tokenizer ? { tokenizer } : {});
  const was = await probeLogits(backend, model, opened.base!, ids, {
    adapter: opened.adapter,
    ...trained,
  });
  const now = await probeLogits(backend, model, base, ids, {
    adapter: kept.adapter,
    ...kept.numbers,
  });
  return compareLogits(was, now).maxRelative;
}

function weightsApart(
  base: TensorRecord,
  opened: OpenedAdapter,
  trained: AdapterNumbers,
  kept: Kept,
): number {
  const was = opened.adapter.merge(opened.base!, trained.params, trained.buffers);
  const now = kept.adapter.merge(base, kept.numbers.params, kept.numbers.buffers);
  const apart = Object.entries(was).map(([name, tensor]) => {
    const other = now[name]!.numbers();
    let [difference, top] = [0, 0];
    const numbers = tensor.numbers();
    for (let i = 0; i < numbers.length; i++) {
      difference = Math.max(difference, Math.abs(numbers[i]! - other[i]!));
      top = Math.max(top, Math.abs(numbers[i]!));
    }
    return top === 0 ? difference : difference / top;
  });
  return Math.max(0, ...apart);
}
