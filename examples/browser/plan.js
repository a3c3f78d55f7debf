/**
 * What training will take, found by a rehearsal: the same run on an engine that counts and does not
 * calculate. It sees every program that the run will load.
 */
import { finetune, OptionError, peakBytes, Tensor } from "plasticity";

/** ONNX Runtime's code as the browser compiles it; and what its memory holds before any model. */
const [codeBytes, idleBytes] = [64 * 2 ** 20, 32 * 2 ** 20];
/** Emscripten asks for a fifth more than is needed, and for at most so much more. */
const [growth, largestGrowth] = [0.2, 96 * 2 ** 20];

const sizes = { float32: 4, int32: 4, int64: 8, float64: 8, bool: 1, uint8: 1 };
const bytesOf = ({ shape, dtype }) => shape.reduce((n, dim) => n * dim, sizes[dtype] ?? 4);

/**
 * Bytes at the height of a run of fine-tuning with these settings: of ONNX Runtime's memory (`heap`),
 * and of all.
 */
export async function trainingBytes({ params, trainee, provider }, examples, settings) {
  let [all, largest, copies] = [0, 0, 0];
  const counting = {
    name: "count",
    load: async (program) => {
      const bytes = peakBytes(program, { target: provider });
      all += bytes;
      largest = Math.max(largest, bytes);
      const specs = [...program.graph.inputs, ...program.outputs];
      copies = Math.max(
        copies,
        specs.reduce((sum, spec) => sum + bytesOf(spec), 0),
      );
      const outputs = program.outputs.map(({ shape, dtype }) => ({ name: "", shape, dtype }));
      return {
        inputs: [],
        outputs,
        run: async (_, into = []) =>
          outputs.map(({ shape, dtype }, i) => into[i] ?? Tensor.zeros(shape, dtype)),
        release: async () => {},
      };
    },
  };
  await finetune(trainee, examples, counting, settings);
  // On the CPU a program gives its memory back after a run, on a graphics card it keeps it.
  const needed = idleBytes + copies + (provider === "webgpu" ? all : largest);
  const heap = needed + Math.min(growth * needed, largestGrowth);
  const weights = Object.values(params).reduce((sum, { data }) => sum + data.byteLength, 0);
  // Numbers, slopes and two moments of each trained parameter.
  const trained = Object.values(trainee.trained).reduce((sum, { size }) => sum + 16 * size, 0);
  return { heap, total: codeBytes + heap + weights + trained };
}

/** Smaller settings, the nearest first: the same run in parts, then shorter examples. */
function* smaller(settings) {
  let now = settings;
  for (let parts = 2; parts <= settings.batchSize; parts *= 2) {
    if (settings.batchSize % parts === 0 && parts > (settings.accumulate ?? 1)) {
      now = { ...settings, accumulate: parts };
      yield now;
    }
  }
  for (let length = 128; length >= 16; length /= 2) {
    if (length < settings.maxLength) yield { ...now, maxLength: length };
  }
}

/** The estimate, whether it is within `limit`, and else the nearest settings that are. */
export async function plan(ready, { examples }, settings, limit) {
  const needs = async (wanted) => {
    const cut = examples.map(({ ids, mask }) => ({
      ids: ids.slice(0, wanted.maxLength + 1),
      mask: mask.slice(0, wanted.maxLength + 1),
    }));
    const useful = cut.filter(({ mask }) => mask.includes(1));
    return useful.length === 0 ? undefined : trainingBytes(ready, useful, wanted);
  };
  const own = await needs(settings);
  if (own === undefined) {
    throw new OptionError(
      `The longest example may have ${settings.maxLength} tokens: no completion is left — allow more.`,
    );
  }
  const fits = own.total <= limit;
  let instead;
  if (!fits) {
    for (const wanted of smaller(settings)) {
      const bytes = await needs(wanted);
      if (bytes === undefined || bytes.total > limit) continue;
      instead = { settings: wanted, bytes: bytes.total };
      break;
    }
  }
  return { bytes: own.total, fits, limit, instead };
}
