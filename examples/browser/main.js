/** The page: what is shown and asked; the work is done in worker.js. */
import { drawCurve } from "./chart.js";

const $ = (id) => document.getElementById(id);
const MiB = 2 ** 20;

let worker;
let calls = new Map();
let nextCall = 0;
/** What the page is doing: nothing else may be started meanwhile. */
let busy = "load";
/** The estimate for what is in the fields; `undefined` while it is being made. */
let planned;
/** Name of the adapter that "after" uses. */
let current;
let isPair = true;

/** Asks the worker for something; `onProgress` hears what it says on the way. */
function call(kind, what = {}, onProgress = () => {}) {
  return new Promise((resolve, reject) => {
    const id = nextCall++;
    calls.set(id, { resolve, reject, onProgress });
    worker.postMessage({ id, kind, ...what });
  });
}

function startWorker() {
  worker?.terminate();
  for (const { reject } of calls.values()) reject(new Error("The engine was changed."));
  calls = new Map();
  worker = new Worker("./worker.js", { type: "module" });
  worker.onerror = (event) => showError(event.message ?? "The engine does not load.");
  worker.onmessage = ({ data: { id, value, progress, error } }) => {
    const waiting = calls.get(id);
    if (!waiting) return;
    if (progress !== undefined) {
      waiting.onProgress(progress);
      return;
    }
    calls.delete(id);
    if (error) waiting.reject(new Error(error.message));
    else waiting.resolve(value);
  };
}

const showSize = (bytes) =>
  bytes >= 1024 * MiB
    ? `${(bytes / 1024 / MiB).toFixed(1)} GiB`
    : `${bytes < 10 * MiB ? (bytes / MiB).toFixed(1) : Math.round(bytes / MiB)} MiB`;

function showTime(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function showError(message) {
  $("data-error").textContent = message;
  $("data-error").hidden = message === "";
}

function refresh() {
  $("train").disabled = busy !== "" || !planned?.fits;
  $("stop").disabled = busy !== "train";
  $("generate").disabled = busy !== "";
  for (const button of $("adapters").querySelectorAll("button")) button.disabled = busy !== "";
  for (const id of ["engine", "sample"]) $(id).disabled = busy !== "";
}

/** Runs one thing at a time; an error is shown and ends it. */
async function during(what, work) {
  busy = what;
  refresh();
  try {
    return await work();
  } catch (error) {
    showError(error.message);
    return undefined;
  } finally {
    busy = "";
    refresh();
  }
}

const number = (id) => Number($(id).value);

const settings = () => ({
  epochs: number("epochs"),
  batchSize: number("batch-size"),
  accumulate: number("accumulate"),
  maxLength: number("max-length"),
  rank: number("rank"),
  learningRate: number("learning-rate"),
  seed: 0,
});

const limit = () => number("memory") * MiB;

/**
 * Half of the device's memory, and no more than WebAssembly can address. Browsers that do not tell
 * count as devices of 4 GiB.
 */
function defaultLimit() {
  const device = (navigator.deviceMemory ?? 4) * 1024;
  return Math.min(device / 2, 4096 - 512);
}

async function listEngines() {
  const cores = navigator.hardwareConcurrency ?? 1;
  const engines = [];
  // Half the processors, as the engine's default: threads that wait for one keep it busy.
  const threads = Math.min(4, Math.max(2, Math.floor(cores / 2)));
  engines.push(["wasm 1", "CPU, one thread"]);
  if (crossOriginIsolated && cores > 1) {
    const many = [`wasm ${threads}`, `CPU, ${threads} threads`];
    if (cores >= 4) engines.unshift(many);
    else engines.push(many);
  }
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) engines.push(["webgpu", "graphics card (WebGPU)"]);
  $("engine").replaceChildren(...engines.map(([value, text]) => new Option(text, value)));
  const asked = new URLSearchParams(location.search).get("engine");
  if (asked && engines.some(([value]) => value === asked)) $("engine").value = asked;
}

async function load() {
  startWorker();
  const [provider, threads] = $("engine").value.split(" ");
  const bar = $("load-progress");
  bar.hidden = false;
  bar.removeAttribute("value");
  const started = await call(
    "start",
    { provider, numThreads: threads ? Number(threads) : undefined },
    ({ file, received, total }) => {
      $("engine-state").textContent = `Loading the model: ${file}, ${showSize(received)}`;
      if (total) bar.value = received / total;
    },
  );
  bar.hidden = true;
  const on = started.threads
    ? `the CPU, ${started.threads === 1 ? "one thread" : `${started.threads} threads`}`
    : "the graphics card";
  $("engine-state").textContent =
    `Ready: ${(started.parameters / 1e6).toFixed(1)} million parameters, on ${on}.`;
  await showAdapters();
}

let planTimer;
let planCount = 0;

/** Estimates anew, shortly after the last change. */
function planSoon() {
  planned = undefined;
  refresh();
  clearTimeout(planTimer);
  planTimer = setTimeout(() => void makePlan(), 400);
}

async function makePlan() {
  const own = ++planCount;
  if (busy !== "") {
    planSoon();
    return;
  }
  $("data-state").textContent = "Reading …";
  showError("");
  let made;
  try {
    for (const input of document.querySelectorAll(".settings input")) {
      if (!input.checkValidity()) {
        const label = input.closest("label").firstChild.textContent.trim();
        throw new Error(`${label}: ${input.validationMessage}`);
      }
    }
    made = await call("estimate", { text: $("text").value, settings: settings(), limit: limit() });
  } catch (error) {
    if (own !== planCount) return;
    $("data-state").textContent = "";
    $("budget").hidden = true;
    $("refusal").hidden = true;
    showError(error.message);
    return;
  }
  if (own !== planCount) return;
  planned = made;
  isPair = made.pairs > 0;
  const what = made.pairs > 0 ? "pairs" : "texts";
  const left = made.cut > 0 ? `, ${made.cut} cut at the longest length` : "";
  $("data-state").textContent =
    `${made.count} ${what}, ${made.tokens.toLocaleString("en")} tokens${left}.`;
  showBudget(made);
  refresh();
}

function showBudget({ bytes, fits, limit: most, instead }) {
  $("budget").hidden = false;
  $("budget-text").textContent = `Training will take about ${showSize(bytes)} of memory`;
  $("budget-limit").textContent = `limit ${showSize(most)}`;
  $("budget-bar").style.width = `${Math.min(100, (100 * bytes) / most)}%`;
  $("budget-bar").parentElement.classList.toggle("over", !fits);
  $("refusal").hidden = fits;
  if (fits) return;
  const changes = instead && [
    instead.settings.accumulate !== settings().accumulate &&
      `the same steps in ${instead.settings.accumulate} parts`,
    instead.settings.maxLength !== settings().maxLength &&
      `examples of at most ${instead.settings.maxLength} tokens`,
  ];
  $("refusal-text").textContent = instead
    ? `This does not fit: it needs about ${showSize(bytes)}, and may take ${showSize(most)}. What fits: ${changes.filter(Boolean).join(" and ")}, about ${showSize(instead.bytes)}.`
    : `This does not fit: it needs about ${showSize(bytes)}, and may take ${showSize(most)}. No smaller step fits either: allow more memory in the settings.`;
  $("use-smaller").hidden = !instead;
}

function useSmaller() {
  const { instead } = planned;
  $("accumulate").value = instead.settings.accumulate ?? 1;
  $("max-length").value = instead.settings.maxLength;
  planSoon();
}

/** `2030-01-31 12.30.05`: a name that sorts by time. */
const nameNow = () => {
  const now = new Date();
  const local = new Date(now.getTime() - now.getTimezoneOffset() * 60_000);
  return local.toISOString().slice(0, 19).replace("T", " ").replaceAll(":", ".");
};

async function train() {
  showError("");
  const name = nameNow();
  const losses = [];
  const times = [];
  drawCurve($("curve"), [], 1);
  $("train-state").textContent = "Preparing the first step …";
  $("train-progress").removeAttribute("value");
  const begun = performance.now();
  const result = await call(
    "train",
    { text: $("text").value, settings: settings(), name },
    ({ step, steps, loss, at }) => {
      losses.push(loss);
      times.push(at);
      // A new length of examples costs a while once: the median leaves such steps out.
      const paces = times.slice(1).map((time, i) => time - times[i]);
      const pace = paces.toSorted((a, b) => a - b)[paces.length >> 1];
      $("train-progress").value = step / steps;
      $("step").textContent = `${step} / ${steps}`;
      $("loss").textContent = loss.toFixed(3);
      $("pace").textContent = pace ? `${Math.round(pace)} ms` : "–";
      $("left").textContent = showTime((pace * (steps - step)) / 1000);
      if (step === 1) $("train-state").textContent = "Training …";
      drawCurve($("curve"), losses, steps);
    },
  );
  const seconds = (performance.now() - begun) / 1000;
  $("left").textContent = "–";
  if (result.steps === 0) {
    $("train-state").textContent = "Stopped before the first step.";
    return;
  }
  $("train-progress").value = 1;
  current = name;
  $("train-state").textContent =
    `${result.isStopped ? "Stopped" : "Done"} after ${result.steps} steps and ${showTime(seconds)}; the adapter is kept.`;
  await showAdapters();
  await compare();
}

async function compare() {
  const prompt = $("prompt").value.trim();
  if (prompt === "") return;
  const shown = (id) => {
    $(id).textContent = "…";
    $(id).classList.add("made");
    return ({ text }) => {
      $(id).textContent = text.trim();
    };
  };
  const show = async (id, adapter) => {
    const write = shown(id);
    const { text } = await call("generate", { prompt, isPair, adapter }, write);
    write({ text: text.trim() === "" ? "(nothing)" : text });
  };
  await show("before", undefined);
  if (current) await show("after", current);
}

async function download(name, file) {
  const { bytes } = await call("readAdapter", { name, file });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", () => void during("files", act));
  return made;
}

async function showAdapters() {
  const { adapters, space } = await call("listAdapters");
  if (!adapters.some(({ name }) => name === current)) current = undefined;
  const items = adapters.map(({ name, bytes }) => {
    const item = document.createElement("li");
    const title = document.createElement("span");
    title.className = "name";
    title.textContent = `${name} · ${showSize(bytes)}${name === current ? " · in use" : ""}`;
    const row = document.createElement("div");
    row.className = "row";
    row.append(
      button("Use", `Use ${name}`, async () => {
        current = name;
        await showAdapters();
        await compare();
      }),
      button("Download weights", `Download adapter_model.safetensors of ${name}`, () =>
        download(name, "adapter_model.safetensors"),
      ),
      button("Download configuration", `Download adapter_config.json of ${name}`, () =>
        download(name, "adapter_config.json"),
      ),
      button("Remove", `Remove ${name}`, async () => {
        await call("removeAdapter", { name });
        await showAdapters();
      }),
    );
    item.append(title, row);
    return item;
  });
  if (items.length === 0) {
    const item = document.createElement("li");
    item.className = "muted";
    item.textContent = "Nothing yet.";
    items.push(item);
  }
  $("adapters").replaceChildren(...items);
  $("space").textContent =
    `This page keeps ${showSize(space.used)}; the browser allows ${showSize(space.available)} more.`;
  refresh();
}

async function useSample() {
  $("text").value = await (await fetch("sample.txt")).text();
  planSoon();
}

$("memory").value = defaultLimit();
drawCurve($("curve"), [], 1);
$("text").addEventListener("input", planSoon);
for (const input of document.querySelectorAll(".settings input")) {
  input.addEventListener("input", planSoon);
}
$("engine").addEventListener("change", () => void during("load", load).then(planSoon));
$("sample").addEventListener("click", () => void useSample());
$("use-smaller").addEventListener("click", useSmaller);
$("train").addEventListener("click", () => void during("train", train));
$("stop").addEventListener("click", () => {
  $("train-state").textContent = "Stopping after this step …";
  void call("stop");
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (busy === "") void during("generate", compare);
});

await listEngines();
await during("load", load);
await useSample();
