/**
 * The catalogue: every published system from the start, and the well-known techniques that are there.
 *
 * A method takes the place of its planned row by an import and an entry here; nothing else that is shared
 * knows of it.
 */
import type { AnyAdapterKind } from "../adapters/adapter.ts";
import { OptionError } from "../errors.ts";
import { adaloraMethod } from "./adapt/adalora.ts";
import { boftMethod } from "./adapt/boft.ts";
import { bottleneck } from "./adapt/bottleneck.ts";
import { eva } from "./adapt/eva.ts";
import { hydra } from "./adapt/hydra.ts";
import { ia3Method } from "./adapt/ia3.ts";
import { loftq } from "./adapt/loftq.ts";
import { lohaMethod } from "./adapt/loha.ts";
import { lokrMethod } from "./adapt/lokr.ts";
import { lora } from "./adapt/lora.ts";
import { loraGa } from "./adapt/lora-ga.ts";
import { ltSft } from "./adapt/lt-sft.ts";
import { oftMethod } from "./adapt/oft.ts";
import { olora } from "./adapt/olora.ts";
import { pissa } from "./adapt/pissa.ts";
import { prefixTuning } from "./adapt/prefix-tuning.ts";
import { promptTuning } from "./adapt/prompt-tuning.ts";
import { sketchTune } from "./adapt/sketchtune.ts";
import { veraMethod } from "./adapt/vera.ts";
import { xLora } from "./adapt/x-lora.ts";
import { dpo } from "./align/dpo.ts";
import { ipo } from "./align/ipo.ts";
import { kto } from "./align/kto.ts";
import { orpo } from "./align/orpo.ts";
import { rewardModel } from "./align/reward-model.ts";
import { sft } from "./align/sft.ts";
import { simpo } from "./align/simpo.ts";
import { replay } from "./continual/replay.ts";
import { aded } from "./decode/aded.ts";
import { ngramStatic } from "./decode/ngram-static.ts";
import { promptLookup } from "./decode/prompt-lookup.ts";
import { distill } from "./distill/distill.ts";
import { gkd } from "./distill/gkd.ts";
import { muscleMethod } from "./distill/muscle.ts";
import { taidMethod } from "./distill/taid.ts";
import { breadcrumbs } from "./merge/breadcrumbs.ts";
import { breadcrumbsTies } from "./merge/breadcrumbs-ties.ts";
import { dareLinear } from "./merge/dare-linear.ts";
import { dareTies } from "./merge/dare-ties.ts";
import { della } from "./merge/della.ts";
import { dellaLinear } from "./merge/della-linear.ts";
import { linear } from "./merge/linear.ts";
import { modelStock } from "./merge/model-stock.ts";
import { slerp } from "./merge/slerp.ts";
import { taskArithmetic } from "./merge/task-arithmetic.ts";
import { ties } from "./merge/ties.ts";
import {
  type AnyMethod,
  type Capability,
  defineMethod,
  type NoOptions,
  type PlannedRole,
  type RoleName,
} from "./method.ts";
import { grpo } from "./reinforce/grpo.ts";
import { ppo } from "./reinforce/ppo.ts";

const implemented: readonly AnyMethod[] = [
  ltSft,
  bottleneck,
  prefixTuning,
  promptTuning,
  hydra,
  eva,
  adaloraMethod,
  boftMethod,
  ia3Method,
  lohaMethod,
  lokrMethod,
  oftMethod,
  veraMethod,
  loftq,
  lora,
  loraGa,
  olora,
  pissa,
  sketchTune,
  xLora,
  dpo,
  ipo,
  kto,
  orpo,
  rewardModel,
  sft,
  simpo,
  replay,
  aded,
  ngramStatic,
  promptLookup,
  distill,
  gkd,
  muscleMethod,
  taidMethod,
  breadcrumbsTies,
  breadcrumbs,
  dareLinear,
  dareTies,
  dellaLinear,
  della,
  linear,
  modelStock,
  slerp,
  taskArithmetic,
  ties,
  grpo,
  ppo,
];

/** number | id | title | capability | roles | arXiv | title of the paper, and a sentence on it. */
const planned = `
1 | adaea | AdaEA | robust | analysis | 2308.02897 | An Adaptive Model Ensemble Adversarial Attack for Boosting Adversarial Transferability
  Weighs several surrogate models adaptively so that images which fool all of them also fool a model that was never seen.
2 | madaug | MADAug | curriculum | dataPolicy | 2309.04747 | When to Learn What: Model-Adaptive Data Augmentation Curriculum
  A small network picks augmentations for each picture by the model's present state, from mild ones early to strong ones late.
5 | daformer | DAFormer | vision | model, streamLearner | 2111.14887 | DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic Segmentation
  Segments unlabelled real scenes after training on synthetic ones, by self-training with a transformer and a context-aware decoder.
6 | codyra | CoDyRA | adapt | adapter | 2412.01004 | Adaptive Rank, Reduced Forgetting: Knowledge Retention in Continual Learning Vision-Language Models with Dynamic Rank-Selective LoRA
  LoRA whose ranks carry gates: training keeps the ranks that a task needs, and merges them before the next task.
7 | rleegnet | RLEEGNet | reinforce | model, agent | 2402.09465 | RLEEGNet: Integrating Brain-Computer Interfaces with Adaptive AI for Intuitive Responsiveness and High-Accuracy Motor Imagery Classification
  Reads imagined movements from brain signals with spatial filters and a small recurrent network trained as a Q-function.
8 | aware-net | AWARE-NET | robust | model | 2505.00312 | AWARE-NET: Adaptive Weighted Averaging for Robust Ensemble Network in Deepfake Detection
  Averages detectors of one family, then learns how much to trust each family when it tells real faces from forged ones.
9 | graph-aware-attention | GIN / Sparse-GIN attention | adapt | adapter | 2501.02393 | Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers
  Treats attention as a graph over tokens and adds a small graph network on its sparse form beside a frozen model.
10 | tutel-flex | Flex (Tutel) | experts | model | 2206.03382 | Tutel: Adaptive Mixture-of-Experts at Scale
  A mixture-of-experts layer that changes parallelism, pipelining and capacity at each step, as the load of its experts moves.
11 | ita-mdt | ITA-MDT | generate | model | 2503.20418 | ITA-MDT: Image-Timestep-Adaptive Masked Diffusion Transformer Framework for Image-Based Virtual Try-On
  A masked diffusion transformer that dresses a person in a given garment and weighs garment features by picture and time step.
12 | causal-motion | Causal Motion | vision | model, objective | 2111.14820 | Towards Robust and Adaptive Motion Forecasting: A Causal Representation Perspective
  Forecasts paths of walkers with invariant and style features kept apart, so that a new place needs few samples.
13 | mambanut | MambaNUT | vision | model, dataPolicy | 2412.00626 | MambaNUT: Nighttime UAV Tracking via Mamba-based Adaptive Curriculum Learning
  Tracks objects at night with a bidirectional Mamba and a curriculum that moves from day to night pictures.
14 | db-gpt | DB-GPT | agents | agent | 2312.17449 | DB-GPT: Empowering Database Interactions with Private Large Language Models
  Answers questions about private databases: retrieval, text to SQL and agents that run on local models.
15 | smetimes | SMETimes | forecast | model, adapter | 2503.03594 | Small but Mighty: Enhancing Time Series Forecasting with Lightweight LLMs
  Forecasts series with a small frozen language model that reads windows as tokens beside a text of their statistics.
16 | magnet | MAGNET | sequence | model | 2407.08818 | MAGNET: Improving the Multilingual Fairness of Language Models with Adaptive Gradient-Based Tokenization
  A byte-level language model that learns its own segments, with one boundary predictor per script so that all pay alike.
17 | adr | ADR | curriculum | dataPolicy | 2503.12821 | From Head to Tail: Towards Balanced Representation in Large Vision-Language Models through Adaptive Data Calibration
  Thins out common examples of vision-language data and synthesises rare ones, so that the tail is learnt too.
18 | adaptive-guidance | Adaptive Guidance / LinearAG | generate | decoder | 2312.12487 | Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models
  Leaves out the unconditional pass of guided diffusion once both predictions agree, or predicts it by a linear rule.
19 | longmem | LongMem | memory | model | 2306.07174 | Augmenting Language Models with Long-Term Memory
  A frozen language model fills a bank of keys and values from past text, and a small side network reads it.
20 | ancat | ANCAT | sequence | model | 2305.04159 | Lookahead When It Matters: Adaptive Non-causal Transformers for Streaming Neural Transducers
  A streaming recogniser whose layers learn how far each frame looks ahead, under a price for delay.
21 | hunyuan-turbos | Hunyuan-TurboS | sequence | model, policy | 2505.15431 | Hunyuan-TurboS: Advancing Large Language Models through Mamba-Transformer Synergy and Adaptive Chain-of-Thought
  Alternates Mamba and attention blocks with experts, and learns when a question deserves a long chain of thought.
22 | slct | sLCT | generate | model, objective | 2502.01441 | Improved Training Technique for Latent Consistency Models
  Trains consistency models on heavy-tailed latents with a Cauchy loss, optimal transport and a scheduled threshold.
23 | eigenshield | EigenShield | robust | transform | 2502.14976 | EigenShield: Causal Subspace Filtering via Random Matrix Theory for Adversarially Robust Vision-Language Models
  Projects embeddings of a vision-language model on directions that attacks do not move, chosen by random matrix theory.
24 | writer-adaptation | Writer adaptation (MetaHTR) | test-time | streamLearner | 2307.15071 | Writer adaptation for offline text recognition: An exploration of neural network-based methods
  Adapts a reader of handwriting to a new writer from a few words, by meta-learning or by a code for the writer.
25 | domain-forge | DomainForge | merge | searcher, analysis | 2409.03444 | Fine-tuning large language models for domain adaptation: Exploration of training strategies, scaling, model merging and synergistic capabilities
  Runs chains of continued pre-training, instruction and preference tuning, then merges them and tests whether the merge beats its parents.
26 | duo-llm | Duo-LLM | experts | model, router | 2410.10846 | Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models
  Gives every layer a large, a small and a bypass path, and compares trained routers with the best routing there is.
28 | toolace-r | ToolACE-R | agents | dataPolicy, agent | 2504.01400 | ToolACE-R: Tool Learning with Adaptive Self-Refinement
  Trains tool calls on examples that suit the model's present skill, and lets it refine its own calls until they settle.
29 | moe-infer | MoE-Infer (survey) | experts | transform, analysis | 2412.14219 | A Survey on Inference Optimization Techniques for Mixture of Experts Models
  Combines pruning, merging, quantising and caching of experts under limits of memory and delay.
30 | adaptdhm | AdaptDHM | route | model, router | 2211.12105 | AdaptDHM: Adaptive Distribution Hierarchical Model for Multi-Domain CTR Prediction
  Predicts clicks over many domains by routing each sample to latent clusters with networks of their own.
31 | stable-rps | STABLE-RPS | compress | transform | 2310.11611 | In defense of parameter sharing for model-compression
  Reads all weights from one small shared array through fixed hashes, with scales that keep training stable.
32 | cema | CEMA | test-time | streamLearner | 2402.17316 | Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy Distillation
  Splits test-time adaptation between a device that selects samples and a server that adapts and sends back few numbers.
33 | ear | EAR | continual | streamLearner, searcher | 2308.02084 | Efficient Model Adaptation for Continual Learning at the Edge
  Detects new domains at the edge, picks a small adaptor without training candidates, and routes later inputs to it.
34 | flexibert | FlexiBERT / BOSHNAS | search | searcher | 2205.11656 | FlexiBERT: Are Current Transformer Architectures too Homogeneous and Rigid?
  Searches encoders whose layers differ, with embeddings of architectures and a Bayesian surrogate.
35 | continual-inference | Continual Inference Networks | sequence | model, transform | 2306.13474 | Efficient Online Processing with Deep Neural Networks
  Re-orders a clip network so that each new frame costs one frame of work and gives the same outputs.
35 | spa | Structured Pruning Adapters | adapt | adapter, transform | 2306.13474 | Efficient Online Processing with Deep Neural Networks
  Derives small models for several tasks from one frozen model by adapters that prune whole channels.
37 | mola | MoLA | adapt | adapter | 2402.08562 | Higher Layers Need More LoRA Experts
  A mixture of LoRA experts whose number grows with the depth of the layer.
39 | tokenformer | TokenFormer | elastic | model, transform | 2410.23168 | TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters
  Replaces projections by attention to learnt parameter tokens, so that a trained model grows by appending some.
40 | deeparchitect | DeepArchitect | search | searcher | 1704.08792 | DeepArchitect: Automatically Designing and Training Deep Architectures
  A small language for spaces of architectures, with samplers and tree searches that run on any of them.
42 | redco | Redco | lifecycle | analysis | 2310.16355 | Redco: A Lightweight Tool to Automate Distributed Training of LLMs on Any GPU/TPUs
  Derives how to split a model over devices from two rules, and a training loop from three functions.
43 | guided-evolution | Guided Evolution | search | searcher | 2403.11446 | LLM Guided Evolution -- The Automation of Models Advancing Models
  Evolves the code of a model with edits that a language model proposes, and feeds back those that worked.
44 | neas | NEAS | search | searcher | 2104.00597 | One-Shot Neural Ensemble Architecture Search by Diversity-Guided Search Space Shrinking
  Trains one supernet and searches it for several diverse networks that share their shallow layers.
45 | reloop2 | ReLoop2 | memory | streamLearner | 2306.08808 | ReLoop2: Building Self-Adaptive Recommendation Models via Responsive Error Compensation Loop
  Stores recent errors of a recommender and corrects the next predictions by those of similar samples.
46 | gpicl | GPICL | reinforce | model | 2212.04458 | General-Purpose In-Context Learning by Meta-Learning Transformers
  Meta-trains a transformer on random tasks until its forward pass learns new ones from examples alone.
47 | dsl | DSL | compress | transform | 2402.02855 | Dynamic Sparse Learning: A Novel Paradigm for Efficient Recommendation
  Trains a recommender sparse from the start: weights that matter least are dropped and others grown at a fixed budget.
48 | tryage | Tryage | route | router | 2308.11601 | Tryage: Real-time, intelligent Routing of User Prompts to Large Language Models
  Predicts how well each expert model would do on a prompt, and weighs that against size and other wishes.
49 | s5-rl | S5-RL | sequence | model, agent | 2303.03982 | Structured State Space Models for In-Context Reinforcement Learning
  State-space layers for reinforcement learning whose scan resets at the ends of episodes.
50 | longctx | LongContext Workbench | sequence | model, analysis | 2311.12351 | Advancing Transformer Architecture in Long-Context Large Language Models: A Comprehensive Survey
  One decoder in which attention, positions and caches for long texts can be swapped and measured.
51 | mos | MOS | continual | streamLearner, adapter | 2412.09441 | MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning
  One adapter per task, pulled towards the earlier ones, and a choice among them that the model corrects itself.
52 | spt | SPT Evaluator | sequence | analysis, dataPolicy | 2310.02980 | Never Train from Scratch: Fair Comparison of Long-Sequence Models Requires Data-Driven Priors
  Compares models of long sequences after a short pre-training on the task's own inputs in place of a random start.
53 | mamba-family | Mamba Family | sequence | model | 2408.01129 | A Survey of Mamba
  Selective state-space blocks with the scans and hybrids of their literature as options of one block.
55 | archgym | ArchGym | search | simulator, searcher | 2306.08888 | ArchGym: An Open-Source Gymnasium for Machine Learning Assisted Architecture Design
  Simulators of hardware behind one interface and searchers behind another, with every sample kept for cost models.
56 | amoeballm | AmoebaLLM | elastic | transform | 2411.10606 | AmoebaLLM: Constructing Any-Shape Large Language Models for Efficient and Instant Deployment
  Fine-tunes once so that sub-models of any depth and width can be cut out afterwards.
57 | l2al | L2AL | search | searcher | 2010.15382 | Learning to Actively Learn: A Robust Approach
  Learns a policy for what to label next that is nearly best on problems of every difficulty.
58 | sai | SAI | route | router, agent | 2310.09049 | SAI: Solving AI Tasks with Systematic Artificial Intelligence in Communication Network
  Turns a network operator's intent into subtasks and chains models from a library by their cards.
59 | cad-llama | CAD-Llama | generate | model | 2505.04481 | CAD-Llama: Leveraging Large Language Models for Computer-Aided Design Parametric 3D Model Generation
  Writes parametric CAD programs as annotated code, after pre-training on it and tuning on instructions.
60 | eas | EAS | elastic | searcher, transform | 1707.04873 | Efficient Architecture Search by Network Transformation
  Grows a trained network by transformations that keep its function, chosen by a learnt controller.
61 | netllm | NetLLM | forecast | adapter, model | 2402.02338 | Large Language Model Adaptation for Networking
  Adapts one language model to tasks of networking through encoders, heads that answer in one step, and low-rank updates.
62 | agenttorch | AgentTorch | agents | simulator | 2409.10568 | On the limits of agency in agent-based models
  Simulates populations in tensors whose behaviour a language model gives by archetypes.
63 | mambamixer | MambaMixer | sequence | model | 2403.19888 | MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection
  Selects along tokens and along channels with state-space mixers that read averages of all earlier outputs.
64 | drama | Drama | reinforce | agent, model | 2410.08893 | Drama: Mamba-Enabled Model-Based Reinforcement Learning Is Sample and Parameter Efficient
  Learns to act inside a world model of Mamba blocks, and imagines from states that it knows.
65 | read-me | Read-ME | experts | transform, router | 2410.19123 | Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design
  Cuts a dense decoder into overlapping experts and routes tokens before the model runs.
66 | nola | NOLA | adapt | adapter | 2310.02556 | NOLA: Networks as Linear Combination of Low Rank Random Basis
  Writes LoRA's factors as mixtures of random matrices from a seed, and trains and stores the mixing numbers alone.
67 | a-sdm | A-SDM | compress | transform | 2312.15516 | A-SDM: Accelerating Stable Diffusion through Redundancy Removal and Performance Optimization
  Removes redundant blocks of a diffusion network, fills the holes with cheap convolutions, and distils.
68 | dkvb | DKVB | continual | streamLearner, adapter | 2207.11240 | Discrete Key-Value Bottleneck
  A bottleneck of keys and values after a frozen encoder: training changes only the few values that an input selects.
69 | resource-atlas | ResourceAtlas | lifecycle | analysis | 2401.00625 | Beyond Efficiency: A Systematic Survey of Resource-Efficient Large Language Models
  Measures techniques by the resource that each saves on one's own model, and picks a set that fits a budget.
70 | regnde | RegNDE | science | objective | 2105.03918 | Opening the Blackbox: Accelerating Neural Differential Equations by Regularizing Internal Solver Heuristics
  Adds the solver's own error and stiffness estimates to the loss, so that neural differential equations stay cheap.
71 | ebwm | EBWM / EBT | generate | model | 2406.08862 | Cognitively Inspired Energy-Based World Models
  Scores a candidate next state by an energy and predicts by descent on it, for as long as it helps.
72 | api-agent | ApiAgent | agents | agent | 2412.13233 | Creating an LLM-based AI-agent: A high-level methodology towards enhancing LLMs with APIs
  Turns requests into valid calls of APIs in seven steps with small models and constrained decoding.
74 | uncurl | UNCURL | experts | transform | 2409.01483 | Revisiting SMoE Language Models by Evaluating Inefficiencies with Task Specific Expert Pruning
  Clusters experts by their router scores on one task, and merges each cluster.
75 | das | DAS (PCETL) | adapt | adapter, searcher | 2309.01479 | Parameter and Computation Efficient Transfer Learning for Vision-Language Pre-trained Models
  Learns by reinforcement which layers a task does not need, and puts adapters in their place.
76 | compressor | Compressor | compress | searcher, transform | 2208.07120 | Compressing Pre-trained Models of Code into 3 MB
  Finds the shape of a tiny model under a size limit with a genetic algorithm, then distils the large one into it.
77 | ptm-auditor | PTM-Auditor | lifecycle | analysis | 2303.02552 | An Empirical Study of Pre-Trained Model Reuse in the Hugging Face Deep Learning Model Registry
  Checks model packages for origin, reproducibility, claimed results and risks.
78 | ar-vs-fm-music | ARvsFM Bench | generate | analysis, model | 2506.08570 | Auto-Regressive vs Flow-Matching: a Comparative Study of Modeling Paradigms for Text-to-Music Generation
  Trains next-token and flow-matching generators of music on the same data and backbone, and compares them.
79 | vida | ViDA | test-time | adapter, streamLearner | 2306.04344 | ViDA: Homeostatic Visual Domain Adapter for Continual Test Time Adaptation
  Low- and high-rank adapters whose balance follows the model's uncertainty on a stream without labels.
80 | rai-reference-arch | RAI-RefArch | agents | agent, analysis | 2304.11090 | Towards Responsible AI in the Era of ChatGPT: A Reference Architecture for Designing Foundation Model-based AI Systems
  A blueprint of guards, retrieval, checks and logs around a foundation model, built so that each can be measured.
81 | slm-jare-dtkr | SLM (JARe + DTKR) | continual | streamLearner, adapter | 2404.07470 | Scalable Language Model with Generalized Continual Learning
  Stores low-rank increments per task and retrieves and blends those that fit an input, without task labels.
82 | lora-limits | LoRA-Limits | adapt | analysis | 2406.03136 | Computational Limits of Low-Rank Adaptation (LoRA) for Transformer-Based Models
  Says when the gradient of LoRA through attention can be computed in almost linear time, and computes it.
83 | clam | CLAM | reinforce | agent | 2401.00132 | Contrastive learning-based agent modeling for deep reinforcement learning
  Learns from its own observations what policy the other agents follow, by contrasting views of an episode.
84 | resnet-rs | ResNet-RS | vision | model | 2103.07579 | Revisiting ResNets: Improved Training and Scaling Strategies
  Residual networks with a modern training recipe and rules for what to enlarge first.
85 | rmoe | RMoE | experts | model | 2408.06793 | Layerwise Recurrent Router for Mixture-of-Experts
  Routers of a mixture of experts that hand a recurrent state from layer to layer.
86 | mm-pde | DMM + MM-PDE | science | model | 2312.05583 | Better Neural PDE Solvers Through Data-Free Mesh Movers
  Solves equations on meshes that a learnt mover bends to where the solution is steep, without mesh data.
87 | medagent-search | MedAgentSearch | search | searcher, agent | 2504.11301 | Learning to Be A Doctor: Searching for Effective Medical Agent Architectures
  Evolves workflows of diagnostic agents by edits that follow from the cases they failed.
89 | adam-aper | SimpleCIL + ADAM | continual | streamLearner | 2303.07338 | Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need
  Class prototypes on features of a frozen and a once-adapted model, joined.
90 | ondevice-planner | OnDeviceLM Planner | lifecycle | analysis | 2409.00088 | On-Device Language Models: A Comprehensive Review
  Builds deployments of a model for a device from quantising, pruning, distilling and drafting, and picks by measurement.
91 | mosa | MoSA | adapt | adapter | 2312.02923 | Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training
  Trains an adapter as sparse pieces of which one is active in each step, and merges them to a plain one.
92 | finetune-pipeline | FineTunePipeline-7 | lifecycle | analysis, searcher | 2408.13296 | The Ultimate Guide to Fine-Tuning LLMs from Basics to Breakthroughs: An Exhaustive Review of Technologies, Research, Best Practices, Applied Research Challenges and Opportunities
  Takes a fine-tuning through seven stages with gates between them, with methods to choose in each.
93 | model-sat | Model-SAT | route | router | 2502.17282 | Capability Instruction Tuning: A New Paradigm for Dynamic LLM Routing
  Routes an instruction to the model most likely to answer it, by results on an aptitude test.
94 | colm | CoLM | elastic | model | 2505.11820 | Chain-of-Model Learning for Language Model
  Cuts hidden states into chains that read only earlier ones, so that one model holds several sizes.
`;

function plannedMethods(table: string): AnyMethod[] {
  const lines = table.trim().split("\n");
  return Array.from({ length: lines.length / 2 }, (_, i) => {
    const [number, id, title, capability, roles, arxiv, ...paper] = lines[2 * i]!.split(" | ");
    return defineMethod<NoOptions>({
      id: id!,
      number: Number(number),
      title: title!,
      capability: capability as Capability,
      summary: lines[2 * i + 1]!.trim(),
      paper: {
        title: paper.join(" | "),
        // The first two digits of an arXiv number are those of its year.
        year: 2000 + Number(arxiv!.slice(0, 2)),
        url: `https://arxiv.org/abs/${arxiv}`,
      },
      implementation: "planned",
      options: {},
      roles: {},
      plannedRoles: roles!.split(", ") as PlannedRole[],
    });
  });
}

/** Every method, by id. */
export const methods: readonly AnyMethod[] = [...implemented, ...plannedMethods(planned)].sort(
  (a, b) => (a.id < b.id ? -1 : 1),
);

/** Methods by the words that people ask for them by. */
const byWord = new Map(
  methods.flatMap((method) =>
    [method.id, ...(method.aliases ?? [])].map((word) => [word, method] as const),
  ),
);

/** Edits from one word to another: letters changed, added or left out. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const changed = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, changed));
    }
    row = next;
  }
  return row[b.length]!;
}

/** The nearest of known words, where one is near. */
function nearest(word: string, known: readonly string[]): string | undefined {
  const most = Math.max(2, word.length / 3);
  return known
    .map((one) => [one, distance(word, one)] as const)
    .filter(([, edits]) => edits <= most)
    .sort((a, b) => a[1] - b[1])[0]?.[0];
}

/**
 * The method of an id.
 * @throws OptionError that names the nearest one, or where the list is.
 */
export function methodById(id: string): AnyMethod {
  const found = byWord.get(id);
  if (found) return found;
  const near = nearest(id, [...byWord.keys()]);
  throw new OptionError(
    `unknown method "${id}" — ${near === undefined ? "run" : `did you mean "${near}"? Run`} "plasticity methods" for the list.`,
  );
}

/** A method and a role that it plays. */
export type MethodWith<R extends RoleName> = AnyMethod & {
  readonly roles: { readonly [K in R]-?: NonNullable<AnyMethod["roles"][K]> };
};

/** Methods that play a role, by id. */
export function methodsWith<R extends RoleName>(role: R): readonly MethodWith<R>[] {
  return methods.filter((one): one is MethodWith<R> => one.roles[role] !== undefined);
}

/**
 * A method by its id and a role that it plays.
 * @param where begins an error
 * @throws OptionError where it is not there yet, or does not play that role: it says what does.
 */
export function methodFor(where: string, id: string, roles: readonly RoleName[]): AnyMethod {
  const known = methods.filter((method) => roles.some((role) => method.roles[role]));
  const found = byWord.get(id);
  if (found && known.includes(found)) return found;
  const words = known.map((method) => method.id);
  if (found?.implementation === "planned") {
    throw new OptionError(
      `${where}: ${id} is planned and not there yet — there are ${words.join(", ")}.`,
    );
  }
  const near = nearest(id, words);
  throw new OptionError(
    found
      ? `${where} cannot be ${id}, which is ${Object.keys(found.roles).join(" and ")} — it can be ${words.join(", ")}.`
      : `${where}: unknown method "${id}" — ${near === undefined ? `there are ${words.join(", ")}.` : `did you mean "${near}"?`}`,
  );
}

/** Every kind of adapter, as folders name them. */
export function adapterKinds(): readonly AnyAdapterKind[] {
  const kinds = methodsWith("adapter").map(({ roles }) => roles.adapter);
  return [...new Map(kinds.map((kind) => [kind.kind, kind])).values()];
}
