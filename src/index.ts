/** The public surface of plasticity. */

// Errors
export {
  DtypeError,
  type ErrorCode,
  FormatError,
  MissingError,
  OptionError,
  PlasticityError,
  ShapeError,
  StateError,
  UnsupportedError,
} from "./errors.ts";

// Tensors
export type { Dtype } from "./tensor/dtype.ts";
export { Rng, type RngState } from "./tensor/rng.ts";
export type { Dim, Shape, StaticShape } from "./tensor/shape.ts";
export { Tensor } from "./tensor/tensor.ts";
export type { Tree } from "./tensor/tree.ts";

// Operators: what a traced function is made of
export {
  type Complex,
  type ComplexValue,
  complexAbs,
  complexAdd,
  complexDiv,
  complexMul,
  conjugate,
} from "./ir/complex.ts";
export { customVjp, type ScanOptions, scan, type ValueTree } from "./ir/control.ts";
export { cumProd } from "./ir/cumulative.ts";
export {
  abs,
  add,
  and,
  bitAnd,
  bitOr,
  bitXor,
  cast,
  ceil,
  clamp,
  cos,
  div,
  equal,
  erf,
  exp,
  floor,
  greater,
  greaterOrEqual,
  isNan,
  less,
  lessOrEqual,
  log,
  maximum,
  minimum,
  mod,
  mul,
  neg,
  not,
  notEqual,
  or,
  pow,
  reciprocal,
  relu,
  round,
  rsqrt,
  sigmoid,
  sign,
  sin,
  softplus,
  sqrt,
  square,
  stopGradient,
  sub,
  tanh,
  where,
  xor,
} from "./ir/elementwise.ts";
export {
  crossEntropyRows,
  dequantize,
  gelu,
  layerNorm,
  logSoftmax,
  quantizedLinear,
  rmsNorm,
  silu,
  softmax,
} from "./ir/fused.ts";
export { type Operand, type Spec, Value } from "./ir/graph.ts";
export {
  gather,
  gatherElements,
  iota,
  oneHot,
  repeatInterleave,
  scatterElements,
  scatterNd,
  trilMask,
} from "./ir/indexing.ts";
export {
  chunk,
  concat,
  expand,
  flip,
  pad,
  reshape,
  slice,
  split,
  squeeze,
  stack,
  swapAxes,
  transpose,
  unsqueeze,
} from "./ir/layout.ts";
export {
  avgPool,
  type ConvOptions,
  conv,
  convTranspose,
  type DotOptions,
  dot,
  matmul,
  maxPool,
  type PoolOptions,
} from "./ir/linear.ts";
export {
  argMax,
  argMin,
  cumSum,
  logSumExp,
  max,
  mean,
  min,
  norm,
  prod,
  sort,
  sum,
  topK,
  variance,
} from "./ir/reduce.ts";

// Derivatives
export {
  checkpoint,
  grad,
  gradientOf,
  hvp,
  valueAndGrad,
  valueAndGradWithAux,
  vjp,
} from "./autodiff/grad.ts";

// Running
export type { Backend, Executable, LoadOptions, Program } from "./backend/backend.ts";
export {
  Compiled,
  type CompileOptions,
  compile,
  evaluate,
  spec,
  trace,
} from "./backend/compile.ts";
export { eager } from "./backend/eager.ts";
export { type CompiledVjp, compileVjp, type Residuals } from "./train/vjp.ts";
export { defaultBackend } from "./backend/ort/default.ts";
export { type NodeOrtOptions, nodeOrt } from "./backend/ort/node.ts";
export { OrtBackend, workOf } from "./backend/ort/ort.ts";
export { webOrt } from "./backend/ort/web.ts";
export { reference } from "./backend/reference/reference.ts";
export { Arena } from "./backend/simd/arena.ts";
export { Kernel, type KernelSpec } from "./backend/simd/kernel.ts";

// Layers, initialisers, losses; optimisers, schedules, parameter groups
export * as nn from "./nn/index.ts";
export * as optim from "./optim/index.ts";

// Models
export {
  type LoadedModel,
  loadModel,
  readModelConfig,
  type SaveOptions,
  saveModel,
} from "./models/folder.ts";
export { Gpt2, type Gpt2Config } from "./models/gpt2.ts";
export { inductionPaths, inductionRate, wireInduction } from "./models/induction.ts";
export { Llama, type LlamaConfig } from "./models/llama.ts";
export type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
} from "./models/model.ts";

// Adapters
export { type Adapter, matchTargets } from "./adapters/adapter.ts";
export { type LoraAdapter, type LoraOptions, lora } from "./adapters/lora.ts";
export { type LoadedAdapter, loadAdapter, saveAdapter } from "./adapters/peft.ts";

// Text
export {
  type BpeModel,
  type BpeOptions,
  toTokenizerConfig,
  toTokenizerJson,
  trainBpe,
} from "./data/bpe.ts";
export {
  applyTemplate,
  defaultTemplate,
  type EncodedExamples,
  type Example,
  encodeExamples,
  type RawExample,
  readExamples,
} from "./data/examples.ts";
export { nearestNeighbour } from "./data/nearest.ts";
export { readDocuments, tokenizeFile } from "./data/stream.ts";
export { loadTokenizer, Tokenizer, type TokenizerJson } from "./data/tokenizer.ts";

// Training
export {
  checkFinetune,
  type ExampleScore,
  type FinetuneOptions,
  type FinetuneResult,
  type FinetuneStep,
  finetune,
  scoreExamples,
  traineeOf,
} from "./train/finetune.ts";
export {
  type PretrainOptions,
  type PretrainResult,
  pretrain,
  type Snapshot,
  type StepInfo,
} from "./train/pretrain.ts";
export { type Batch, type EvalResult, type Trainee, TrainProgram } from "./train/program.ts";
export { type UpdateInfo, Updater, type UpdaterOptions } from "./train/updater.ts";

// Generating
export { Decoder, type DecoderOptions, type GenerateOptions } from "./infer/decoder.ts";
export { type Answer, answerAll } from "./infer/exact-match.ts";
export type { SampleOptions } from "./infer/sample.ts";
export { openCheckpoint } from "./io/checkpoint.ts";
export { encodeSafetensors, SafetensorsFile, writeSafetensors } from "./io/safetensors.ts";

// The outside world and its files
export type { Clock, FileInfo, Files, Host, Log } from "./host/host.ts";
