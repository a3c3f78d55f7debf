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
export type {
  AnyTensor,
  Backend,
  Device,
  DeviceStats,
  DeviceTensor,
  Executable,
  LoadOptions,
  Program,
} from "./backend/backend.ts";
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
export { type PeakOptions, peakBytes } from "./backend/ort/peak.ts";
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
  type LoadModelOptions,
  loadAnyModel,
  loadModel,
  readModelConfig,
  type SaveOptions,
  saveModel,
} from "./models/folder.ts";
export { Gemma3, type Gemma3Config } from "./models/gemma3.ts";
export { type LoadedGguf, loadGguf } from "./models/gguf.ts";
export { withGguf } from "./models/gguf-folder.ts";
export {
  type GgufDtype,
  type GgufModelOptions,
  type GgufModelReport,
  ggufDtypes,
  saveGguf,
} from "./models/gguf-write.ts";
export { Gpt2, type Gpt2Config } from "./models/gpt2.ts";
export { GptNeox, type GptNeoxConfig } from "./models/gpt-neox.ts";
export { inductionPaths, inductionRate, wireInduction } from "./models/induction.ts";
export { Llama } from "./models/llama.ts";
export type { LlamaConfig, LlamaFamily } from "./models/llama-config.ts";
export { Mamba, type MambaConfig } from "./models/mamba.ts";
export { Mamba2, type Mamba2Config } from "./models/mamba2.ts";
export { Phi3, type Phi3Config } from "./models/phi3.ts";
export type {
  CarriedState,
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
} from "./models/model.ts";

// Encoders, and models that write another text
export { Bert, type BertConfig } from "./models/bert.ts";
export type { BlockSites } from "./models/blocks.ts";
export { CausalEncoder } from "./models/causal-encoder.ts";
export { DistilBert, type DistilBertConfig } from "./models/distilbert.ts";
export { headedModel } from "./models/headed.ts";
export type { HeadConfig, Headed } from "./models/heads.ts";
export type {
  EncoderHead,
  EncoderModel,
  EncoderOptions,
  EncoderResult,
  HeadTask,
  PretrainedModel,
  Seq2SeqModel,
} from "./models/model.ts";
export { type Pooling, poolings, poolTokens } from "./models/pooling.ts";
export { Roberta, type RobertaConfig } from "./models/roberta.ts";
export { readSentenceConfig, type SentenceConfig } from "./models/sentence-folder.ts";
export { T5, type T5Config } from "./models/t5.ts";

// Adapters
export type { TensorRecord } from "./nn/module.ts";
export {
  type Adapter,
  type AdapterFile,
  type AdapterKind,
  type AdapterNumbers,
  type AnyAdapterKind,
  type BindScene,
  type LoadedAdapter,
  matchTargets,
  newNumbers,
  type PrepareScene,
  weightsScene,
  targetsOf,
} from "./adapters/adapter.ts";
export { positionsBeside } from "./adapters/adapted.ts";
export type { StepAhead, StepChanges, StepHook, StepMade } from "./adapters/hook.ts";
export { type LoraBank, type LoraBankOptions, loraBank } from "./adapters/bank.ts";
export {
  type LoraAdapter,
  type LoraLayer,
  type LoraOptions,
  lora,
  loraKind,
} from "./adapters/lora.ts";
export {
  type CombinedAdapter,
  type CombineMethod,
  type CombineOptions,
  combineAdapters,
  combineMethods,
} from "./adapters/algebra.ts";
export {
  type ConvertedAdapter,
  type ConvertedLayer,
  type ConvertOptions,
  convertToLora,
} from "./adapters/convert.ts";
export { type MergedAdapter, mergeInto } from "./adapters/merged.ts";
export {
  type ActiveAdapter,
  type AdapterSet,
  adapterSet,
  saveAdapterSet,
} from "./adapters/set.ts";
export { type GgufLoraOptions, saveGgufLora } from "./adapters/gguf-lora.ts";
export { type SaveAdapterOptions, saveAdapter } from "./adapters/peft.ts";
export { loadAdapter, loadAdapterSet } from "./methods/load-adapter.ts";

// Methods: the catalogue, and what their roles and options are
export { firstNumbers, onWholeBase, takenFromBase } from "./methods/initialise.ts";
export {
  type AnyMethod,
  type Capability,
  capabilities,
  type Claim as ClaimVerdict,
  type DataPolicyRole,
  type DecoderRole,
  defineMethod,
  type Implementation,
  type Initialised,
  type InitialiserRole,
  type MergeRole,
  type Method,
  type NoOptions,
  type ObjectiveRole,
  type ObjectiveScene,
  type OtherModel,
  type PlannedRole,
  type PolicyRole,
  type RoleName,
  type Roles,
  roleNames,
} from "./methods/method.ts";
export {
  adapterKinds,
  methodById,
  methodFor,
  methods,
  methodsWith,
  type MethodWith,
} from "./methods/registry.ts";
export {
  type GivenOptions,
  type NamedOptions,
  type OptionSpec,
  type OptionSpecs,
  parseNamed,
  readOptions,
} from "./options.ts";
export { type Prepared, prepareScene, type SceneOptions } from "./train/prepare.ts";

// Pictures
export { type Augmentation, augmented } from "./data/augment.ts";
export {
  defaultPreprocessing,
  fitted,
  type Preprocessing,
  pixelsOf,
  preprocessingJson,
  preprocessingOf,
  readPreprocessing,
} from "./data/images.ts";
export {
  findPictures,
  type LabelledPicture,
  type PictureFile,
  type PictureSplit,
  type ReadPicturesOptions,
  readPictures,
} from "./data/picture-files.ts";
export {
  openPicture,
  type PictureExample,
  type PictureSetOptions,
  type PreparedPictures,
  pictureBatches,
  preparePictures,
} from "./data/picture-set.ts";
export { centerCrop, crop, type Picture, type Resample, resize } from "./data/resample.ts";
export type { DecodedImage, DecodeOptions, Images } from "./host/images.ts";
export {
  embedClipTexts,
  ImageEmbedder,
  type ImageEmbedOptions,
  labelTexts,
  seesPictures,
  zeroShot,
} from "./infer/image-embed.ts";
export {
  scoreZeroShot,
  type ZeroShotOptions,
  type ZeroShotScene,
  type ZeroShotScores,
} from "./infer/zero-shot.ts";
export { type BeamOptions, BeamSearch } from "./infer/beam.ts";
export {
  Clip,
  ClipText,
  type ClipTextConfig,
  ClipVision,
  type ClipVisionConfig,
  clipLogits,
} from "./models/clip.ts";
export type {
  PictureHead,
  VisionModel,
  VisionOptions,
  VisionResult,
  VisionTextModel,
} from "./models/model.ts";
export { withLabels } from "./models/picture-head.ts";
export { ResNet, type ResNetConfig } from "./models/resnet.ts";
export { Vit, type VitConfig } from "./models/vit.ts";
export { batchStatistics } from "./train/tasks/batch-statistics.ts";
export {
  type ImageClassificationOptions,
  imageClassification,
  mergedParams,
  type PictureScores,
  pictureAdapterTrainee,
  pictureTrainee,
  scorePictures,
} from "./train/tasks/image-classification.ts";

// Data of tasks
export { type PlainText, readTask, type ReadTaskOptions, toPlainText } from "./data/tasks.ts";
export { type FramedText, frameText, type TextFrame, textFrame } from "./data/text-frame.ts";

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
  type ReadExamplesOptions,
  readExamples,
  streamExamples,
} from "./data/examples.ts";
export { encodeChatPrompt, type LossOn } from "./data/chat.ts";
export {
  type ChatTemplate,
  loadChatTemplate,
  parseChatTemplate,
  plainChatTemplate,
} from "./data/chat-template.ts";
export {
  type DataKind,
  type EncodedPreferences,
  type EncodeExamplesOptions,
  encodeExample,
  encodePreferences,
  partsOf,
  type PromptOptions,
  type Question,
  questionOf,
  stopIdsOf,
} from "./data/encode.ts";
export { epochBatches } from "./data/epochs.ts";
export { type ChatMessage, promptText, type ToolCall, type Turns } from "./data/example.ts";
export { type DataFormat, readRecords } from "./data/formats.ts";
export { checkMap, layoutFields, layoutHelp } from "./data/layouts.ts";
export { nearestNeighbour } from "./data/nearest.ts";
export {
  fillRate,
  packBins,
  packExamples,
  packedSet,
  packRow,
  positionsOf,
} from "./data/packing.ts";
export {
  type PreparedData,
  type PrepareOptions,
  prepareData,
  type Sample,
} from "./data/prepare.ts";
export { type Preview, type PreviewToken, previewExample } from "./data/preview.ts";
export {
  type AnyExampleSet,
  type ExampleSet,
  memoryPreferences,
  memorySet,
  type Preference,
  preferenceSet,
} from "./data/set.ts";
export { type Split, type SplitOptions, splitByHash } from "./data/split.ts";
export { fileSet, writeExampleFile } from "./data/store.ts";
export { readDocuments, tokenizeFile } from "./data/stream.ts";
export { loadTokenizer, Tokenizer, type TokenizerJson } from "./data/tokenizer.ts";

// Training
export { type Choice, fitDeadline, type PlanFacts, planSettings } from "./train/plan.ts";
export {
  estimateMemory,
  estimateRun,
  type MemoryEstimate,
  type RunEstimate,
} from "./train/estimate.ts";
export {
  estimatePolicy,
  estimatePolicyMemory,
  type PolicyEstimate,
  type PolicyMemoryEstimate,
} from "./train/estimate-policy.ts";
export {
  type FindRateOptions,
  type FoundRate,
  findLearningRate,
  type RateTrial,
} from "./train/find-rate.ts";
export { optimizerNames } from "./optim/by-name.ts";
export { scheduleNames } from "./optim/schedule.ts";
export {
  checkFinetune,
  type ExampleScore,
  Finetuner,
  type FinetuneOptions,
  type FinetuneResult,
  type FinetuneState,
  type FinetuneStep,
  finetune,
  finetuneSteps,
  scoreExamples,
} from "./train/finetune.ts";
export {
  type PretrainOptions,
  type PretrainResult,
  pretrain,
  type Snapshot,
  type StepInfo,
} from "./train/pretrain.ts";
export { causalLm } from "./train/causal-lm.ts";
export type { AnyObjective, Objective, ObjectiveResult, Scene } from "./train/objective.ts";
export { type Batch, type EvalResult, type Trainee, TrainProgram } from "./train/program.ts";
export {
  makeStepper,
  type StepPart,
  type Stepper,
  type StepperOptions,
  type StepResult,
  type TrainState,
} from "./train/stepper.ts";
export {
  type CheckpointFile,
  isRun,
  listCheckpoints,
  type Metrics,
  Run,
  type RunSummary,
  readRun,
} from "./train/run.ts";
export {
  lossChart,
  type TrainRunOptions,
  type TrainRunResult,
  type Tuner,
  trainRun,
} from "./train/train-run.ts";
export {
  ownWeights,
  quantizedAsRead,
  quantizeModel,
  type TraineeOptions,
  traineeOf,
  withObjective,
  withReference,
} from "./train/trainee.ts";
export { pictureTaskKinds, taskKinds } from "./train/tasks/index.ts";
export { type MaskedLmOptions, maskedLm, maskTokens } from "./train/tasks/masked-lm.ts";
export { sentenceEmbedding } from "./train/tasks/sentence-embedding.ts";
export {
  contrastive,
  cosent,
  cosineLoss,
  matryoshka,
  multipleNegatives,
  type SentenceLoss,
  triplet,
} from "./train/tasks/sentence-loss.ts";
export { seq2seq } from "./train/tasks/seq2seq.ts";
export {
  type ClassificationOptions,
  sequenceClassification,
} from "./train/tasks/sequence-classification.ts";
export {
  type AnyTaskKind,
  type OpenedTask,
  type TaskKind,
  type TaskOptions,
  taskAdapter,
  taskTrainee,
} from "./train/tasks/task.ts";
export { readTaskFile, type TaskFile, writeTaskFile } from "./train/tasks/task-file.ts";
export { tokenClassification } from "./train/tasks/token-classification.ts";
export { type UpdateInfo, Updater, type UpdaterOptions } from "./train/updater.ts";

// Objectives beside the next token, and training on a model's own answers
export {
  type DistillOptions,
  type Divergence,
  type DivergenceOptions,
  distill,
  divergenceRows,
  divergences,
  type Teacher,
} from "./train/objectives/distill.ts";
export {
  type DpoOptions,
  dpo,
  dpoLoss,
  type ReferencedPreference,
} from "./train/objectives/dpo.ts";
export {
  type AdvantageScale,
  type GrpoOptions,
  groupAdvantages,
  grpo,
} from "./train/objectives/grpo.ts";
export { type IpoOptions, ipo, ipoLoss } from "./train/objectives/ipo.ts";
export { type KtoOptions, kto, ktoLoss } from "./train/objectives/kto.ts";
export { type OrpoOptions, orpo, orpoLoss } from "./train/objectives/orpo.ts";
export {
  type GkdOptions,
  type GrpoPolicyOptions,
  gkdPolicy,
  grpoPolicy,
  type Inspected,
  type PolicyMethod,
  type PpoPolicyOptions,
  ppoPolicy,
  type ScoredAnswer,
} from "./train/objectives/policies.ts";
export {
  type GaeOptions,
  gae,
  type PpoOptions,
  ppo,
  tokenRewards,
} from "./train/objectives/ppo.ts";
export { type PrecomputeOptions, precomputeReference } from "./train/objectives/precompute.ts";
export {
  distillRecorded,
  type RecordOptions,
  recordTeacher,
  type TaughtExample,
} from "./train/objectives/recorded.ts";
export { type ReplayOptions, replaySet } from "./train/objectives/replay.ts";
export {
  loadRewardModel,
  type RewardModel,
  type RewardOptions,
  rewardAdapter,
  rewardLoss,
  rewardModel,
} from "./train/objectives/reward.ts";
export type { Rollout } from "./train/objectives/rollout.ts";
export { type SimpoOptions, simpo, simpoLoss } from "./train/objectives/simpo.ts";
export {
  type PolicyOptions,
  type PolicyPrompt,
  type PolicyResult,
  PolicyTrainer,
  promptSet,
  trainPolicy,
} from "./train/policy.ts";
export {
  exactReward,
  type GivenAnswer,
  jsonReward,
  lengthReward,
  numberReward,
  type Reward,
  type RewardSettings,
  rewardByName,
  rewardNames,
  sumRewards,
} from "./train/rewards.ts";

// Generating
export {
  type ChosenLogprob,
  type Completion,
  Decoder,
  type DecoderOptions,
  type FinishReason,
  type GenerateOptions,
} from "./infer/decoder.ts";
export type { Drafter, DraftTree, VerifiedPass } from "./infer/drafter.ts";
export type { AdapterInfo } from "./infer/serve/adapter-slots.ts";
export {
  EmbedBatcher,
  type EmbedBatcherOptions,
  type Embedded,
} from "./infer/serve/embed-batcher.ts";
export { ServeEngine, type ServeOptions } from "./infer/serve/engine.ts";
export type { ServedToken, ServeHandle, ServeResult, ServeUsage } from "./infer/serve/feed.ts";
export type { HistogramCounts, ServeMetrics } from "./infer/serve/metrics.ts";
export type { CacheStats } from "./infer/serve/pages.ts";
export {
  type CallName,
  type EngineCalls,
  EngineClient,
  EngineHost,
  type EngineHostOptions,
  type FromEngine,
  fromWire,
  type ToEngine,
  toWire,
  type WireError,
  type WireRequest,
} from "./infer/serve/protocol.ts";
export { BusyError } from "./infer/serve/queue.ts";
export type { ServeRequest } from "./infer/serve/stream.ts";
export { asEncoder, type EmbedOptions, TextEmbedder } from "./infer/embed.ts";
export {
  type EncoderInput,
  EncoderRunner,
  type EncoderRunOptions,
} from "./infer/encoder-run.ts";
export { type Seq2SeqAnswer, Seq2SeqDecoder, type Seq2SeqOptions } from "./infer/seq2seq.ts";
export { chrf } from "./infer/metrics/chrf.ts";
export {
  type ClassificationScores,
  classificationScores,
  multiLabelScores,
} from "./infer/metrics/classification.ts";
export { pearson, spearman } from "./infer/metrics/correlation.ts";
export { type EntityScores, entityScores } from "./infer/metrics/entities.ts";
export { type RetrievalScores, rankByProduct, retrievalScores } from "./infer/metrics/retrieval.ts";
export { type Answer, answerAll } from "./infer/exact-match.ts";
export { Conversation, type ConversationOptions, type Reply } from "./infer/conversation.ts";
export { PromptMemory } from "./infer/memory.ts";
export { constrain, type TokenConstraint } from "./infer/constraint.ts";
export type { JsonTextOptions, Whitespace } from "./infer/grammar/json-rules.ts";
export { type Grammar, jsonGrammar, schemaGrammar } from "./infer/grammar/grammar.ts";
export { fitsSchema } from "./infer/grammar/validate.ts";
export { Vocabulary, vocabularyOf } from "./infer/grammar/vocabulary.ts";
export { checkSampling, type SampleOptions, type TokenLogprob } from "./infer/sample.ts";
export {
  type ChatTool,
  checkTools,
  knowsTools,
  markTokens,
  type ToolChoice,
  type ToolFormat,
  type ToolGrammarOptions,
  toolFormatOf,
  toolFormats,
  toolGrammar,
  withToolsAsText,
} from "./infer/tool-calls.ts";
export {
  type AnswerDelta,
  callIds,
  readToolAnswer,
  type ToolAnswer,
  ToolStream,
} from "./infer/tool-stream.ts";
export { closeMargin, PassCount } from "./infer/speculative.ts";
export {
  type GeneratedText,
  generateText,
  generateTexts,
  type Prompt,
  streamText,
  type TextOptions,
} from "./infer/text.ts";
export { checkStops, TextStream, type TextStreamOptions } from "./infer/text-stream.ts";
export { type AdaLoraOptions, adalora, adaloraMethod } from "./methods/adapt/adalora.ts";
export { type BoftOptions, boft, boftMethod } from "./methods/adapt/boft.ts";
export {
  type BottleneckAdapter,
  type BottleneckOptions,
  bindBottleneck,
  bottleneck,
} from "./methods/adapt/bottleneck.ts";
export { type EvaOptions, type EvaPlan, eva, evaPlan } from "./methods/adapt/eva.ts";
export {
  type BranchSubspace,
  bindHydra,
  branchSubspaceReport,
  type HydraAdapter,
  type HydraOptions,
  hydra,
} from "./methods/adapt/hydra.ts";
export { type Ia3Options, ia3, ia3Method } from "./methods/adapt/ia3.ts";
export { type LohaOptions, loha, lohaMethod } from "./methods/adapt/loha.ts";
export { type LokrOptions, lokr, lokrMethod } from "./methods/adapt/lokr.ts";
export { type LoftqOptions, type LoftqWeight, loftq, loftqWeight } from "./methods/adapt/loftq.ts";
export { type LoraGaOptions, loraGa } from "./methods/adapt/lora-ga.ts";
export {
  bindLtSft,
  type LtSftAdapter,
  type LtSftOptions,
  ltSft,
  sparseDeltaOf,
} from "./methods/adapt/lt-sft.ts";
export { olora } from "./methods/adapt/olora.ts";
export { type PissaOptions, pissa } from "./methods/adapt/pissa.ts";
export { type OftOptions, oft, oftMethod } from "./methods/adapt/oft.ts";
export {
  bindPrefixTuning,
  type PrefixTuningOptions,
  prefixTuning,
} from "./methods/adapt/prefix-tuning.ts";
export {
  bindPromptTuning,
  type PromptTuningOptions,
  promptTuning,
} from "./methods/adapt/prompt-tuning.ts";
export {
  compose as composeDeltas,
  SparseDelta,
  type SparseEntries,
} from "./methods/adapt/shared/sparse-delta.ts";
export { type VeraOptions, vera, veraMethod } from "./methods/adapt/vera.ts";
export {
  compareUpdateClasses,
  type SketchSettings,
  type UpdateClasses,
} from "./methods/adapt/sketch-grid.ts";
export {
  bindSketchTune,
  type SketchBytes,
  type SketchTuneAdapter,
  type SketchTuneOptions,
  sketchBytes,
  sketchTune,
} from "./methods/adapt/sketchtune.ts";
export {
  bindXLora,
  type Experts,
  mixExperts,
  type XLoraAdapter,
  xLora,
} from "./methods/adapt/x-lora.ts";
export type { XLoraOptions } from "./methods/adapt/x-lora-options.ts";
export { effectiveExperts, tokenScalings } from "./methods/adapt/x-lora-scalings.ts";
export { type AdedOptions, aded } from "./methods/decode/aded.ts";
export { makeDrafter, type NamedDrafter, parseDrafter } from "./methods/decode/drafters.ts";
export { type NgramStaticOptions, ngramStatic } from "./methods/decode/ngram-static.ts";
export { type PromptLookupOptions, promptLookup } from "./methods/decode/prompt-lookup.ts";

// Evaluating
export {
  answerChoices,
  type ChoiceOptions,
  type ChoiceQuestion,
  type ChoiceReport,
  type ChoiceResult,
  isChoiceRecord,
  type Normalization,
  toQuestion,
} from "./infer/choices.ts";
export { bestOf, exactMatch, normalizeAnswer, tokenF1 } from "./infer/metrics/answers.ts";
export { type BootstrapOptions, bootstrapRatio, type Interval } from "./infer/metrics/bootstrap.ts";
export {
  type Binning,
  brierScore,
  expectedCalibrationError,
  maximumCalibrationError,
  type Predictions,
  type ReliabilityBin,
  reliability,
} from "./infer/metrics/calibration.ts";
export {
  type ChoiceCompatibility,
  type CompatibilityReport,
  choiceCompatibility,
  type TextCompatibility,
  textCompatibility,
} from "./infer/metrics/compatibility.ts";
export { type GenerationReport, generationReport } from "./infer/metrics/generation.ts";
export {
  type Calibration,
  estimateMean,
  estimateRatio,
  type LikelihoodOptions,
  type LikelihoodReport,
  likelihoodReport,
  type Measurement,
} from "./infer/metrics/likelihood.ts";
export { type RougeScore, type RougeScores, rouge } from "./infer/metrics/rouge.ts";
export {
  type ScoreOptions,
  Scorer,
  slidingWindows,
  type TextWindow,
  type TokenScores,
} from "./infer/score.ts";
export { openCheckpoint } from "./io/checkpoint.ts";
export { createGguf, type GgufPlan, type GgufValue, writeGguf } from "./io/gguf.ts";
export { dequantize as dequantizeGguf, quantize as quantizeGguf } from "./io/gguf-quants.ts";
export { GgufFile, type GgufHeader, type GgufTensor, readGgufHeader } from "./io/gguf-read.ts";
export { decodeOnnx, type OnnxModel } from "./io/onnx-read.ts";
export {
  createSafetensors,
  encodeSafetensors,
  SafetensorsFile,
  type SafetensorsWriter,
  type TensorPlan,
  writeSafetensors,
} from "./io/safetensors.ts";

// Merging and exporting, verified before anything is written
export {
  type ExportOnnxOptions,
  exportTolerance,
  type VariantReport,
  type VerifiedExport,
  verifyOnnxExport,
} from "./infer/export-onnx.ts";
export {
  type MergeAdapterOptions,
  type MergeReport,
  mergeAdapter,
  mergeTolerance,
  type VerifiedMerge,
  verifyMerge,
} from "./infer/merge-adapter.ts";
export { type OnnxVariant, onnxVariants } from "./infer/onnx-weights.ts";
export {
  compareLogits,
  type LogitDifference,
  probeInputs,
  probeLogits,
} from "./infer/verify.ts";

// Merging several models into one
export {
  type Breadcrumb,
  type BreadcrumbOptions,
  BreadcrumbPool,
  breadcrumb,
  type MergeConfig,
  type MergedReport,
  type MergeProgress,
  mergeBreadcrumbs,
  mergeMethods,
  type OpenedMerge,
  openMerge,
  type ResolveModel,
  type RunMergeOptions,
  readMergeConfig,
  resolveFolders,
} from "./methods/merge/index.ts";

// Models from the hub
export {
  type DownloadedFile,
  type DownloadedModel,
  type DownloadOptions,
  type DownloadProgress,
  downloadModel,
  type HubHost,
} from "./io/hub/download.ts";
export { type HubId, parseHubId } from "./io/hub/id.ts";
export type { CacheFiles } from "./io/hub/store.ts";

// Reports of runs: charts and TensorBoard files
export {
  type Bar,
  type BarChartOptions,
  barChart,
  type ChartPoint,
  type LineChartOptions,
  lineChart,
  type Mark,
  type ScatterChartOptions,
  type Series,
  scatterChart,
} from "./io/chart.ts";
export {
  EventWriter,
  type EventWriterOptions,
  eventBytes,
  keepEvents,
  type RunEvent,
} from "./io/tensorboard.ts";

// Experiments: published claims put to the test
export { type Claim, parseClaim } from "./experiments/claim.ts";
export type { DataSetInfo } from "./experiments/data/data-set.ts";
export { dataSets } from "./experiments/data/index.ts";
export type {
  Budget,
  Cell,
  Experiment,
  ExperimentContext,
  Plan,
} from "./experiments/experiment.ts";
export {
  type CommittedResult,
  readCommitted,
  resultChart,
  resultsTable,
  verdictWords,
  writeResult,
} from "./experiments/report.ts";
export type { ExperimentResult } from "./experiments/result.ts";
export {
  experimentFolder,
  listExperiments,
  loadExperiment,
  type Progress,
  type ReproduceOptions,
  readClaim,
  reproduce,
} from "./experiments/runner.ts";
export { judge, type Judgement, type Verdict } from "./experiments/verdict.ts";
export { type DotChartOptions, type DotRow, dotChart } from "./io/chart-dots.ts";

// The outside world and its files
export type { Clock, FileInfo, Files, Host, Log } from "./host/host.ts";
export type { FetchedPackage, PackageRequest, Packages } from "./host/packages.ts";
