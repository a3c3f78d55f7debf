/** What the host of a page does with its files, as facts that the test asserts. */
import { browserHost, fetchFile, storageSpace } from "plasticity/browser";

/** The sentence, code and details of what a call throws. */
async function failure(call) {
  try {
    await call();
  } catch (error) {
    return { message: error.message, code: error.code, details: error.details };
  }
  return undefined;
}

const text = (bytes) => new TextDecoder().decode(bytes);

export default async function run() {
  const host = browserHost({ root: "contract" });
  const { files } = host;
  const names = async (path = "") => (await files.list(path)).map((entry) => entry.path);
  const facts = {};

  await files.writeText("a.txt", "one\n");
  await files.writeText("/a.txt", "zwei — 二\n");
  await files.append("a.txt", "three\n");
  facts.text = await files.readText("./a.txt");
  facts.names = await names();

  await files.writeBytes("b", Uint8Array.of(1));
  const writer = await files.create("b");
  await writer.write(Uint8Array.of(2));
  await writer.write(Uint8Array.of(3));
  facts.before = [...(await files.readBytes("b"))];
  facts.during = await names();
  await writer.commit();
  await writer.abort();
  facts.after = [...(await files.readBytes("b"))];
  facts.twice = await failure(() => writer.write(Uint8Array.of(4)));
  const aborted = await files.create("gone");
  await aborted.write(Uint8Array.of(1));
  await aborted.abort();
  await aborted.abort();
  facts.afterAbort = await names();

  facts.missing = [];
  for (const call of [
    () => files.readText("none"),
    () => files.open("none"),
    () => files.list("none"),
    () => files.writeText("none/x", ""),
    () => files.append("none/x", ""),
    () => files.readText("a.txt/x"),
  ]) {
    facts.missing.push(await failure(call));
  }
  facts.noInfo = (await files.info("none")) === undefined;
  await files.remove("none");

  await files.makeDirectory("folder/inner");
  await files.makeDirectory("folder/inner");
  await files.writeText("folder/inner/c", "12");
  facts.folder = await failure(() => files.open("folder"));
  facts.onFolder = await failure(() => files.writeText("folder", "x"));
  facts.list = await files.list("folder");
  facts.inner = await files.list("folder/inner");
  await files.remove("folder");
  facts.removed = await names();
  facts.root = await failure(() => files.remove("/"));
  facts.bad = [];
  for (const path of ["../a", "a\\b", "x".repeat(300)]) {
    facts.bad.push((await failure(() => files.writeText(path, "")))?.code);
  }

  await files.writeText("digits", "0123456789");
  facts.limit = await failure(() => files.readBytes("digits", 9));
  facts.atLimit = await files.readText("digits", 10);
  const open = await files.open("digits");
  const into = new Uint8Array(3);
  await open.read(into, 7);
  facts.read = [open.bytes, text(into)];
  facts.pastEnd = await failure(() => open.read(into, 8));
  facts.negative = await failure(() => open.read(into, -1));
  await open.close();
  facts.closed = await failure(() => open.read(into, 0));

  const many = Uint8Array.from({ length: 2_500_000 }, (_, i) => i % 251);
  await files.writeBytes("many", many);
  let [chunks, streamed, isSame] = [0, 0, true];
  for await (const chunk of files.stream("many")) {
    chunks++;
    isSame &&= chunk.every((value, i) => value === many[streamed + i]);
    streamed += chunk.length;
  }
  facts.stream = { chunks, streamed, isSame };

  const lock = await files.lock("run");
  facts.locked = await failure(() => files.lock("run"));
  await lock.release();
  await (await files.lock("run")).release();

  // A browser without `move`.
  const { move } = FileSystemFileHandle.prototype;
  FileSystemFileHandle.prototype.move = undefined;
  await files.writeText("copied", "by copy");
  await files.writeText("copied", "again");
  FileSystemFileHandle.prototype.move = move;
  facts.copied = await files.readText("copied");
  facts.copies = (await names()).filter((path) => path.startsWith("copied"));

  // Storage that is full.
  const { write } = FileSystemWritableFileStream.prototype;
  FileSystemWritableFileStream.prototype.write = async () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  facts.full = await failure(() => files.writeText("full", "x"));
  FileSystemWritableFileStream.prototype.write = write;
  facts.noFull = (await files.info("full")) === undefined;
  const space = await storageSpace();
  facts.space = space.used > 0 && space.available > 0;

  const seen = [];
  facts.fetched = await fetchFile(host, "/models/builtin/model.safetensors", "model", {
    onProgress: (progress) => seen.push(progress),
  });
  facts.progress = {
    isRising: seen.every(({ received }, i) => i === 0 || received > seen[i - 1].received),
    last: seen.at(-1),
  };
  facts.stored = (await files.info("model")).bytes;
  facts.notFound = await failure(() => fetchFile(host, "/none.bin", "none.bin"));
  facts.tooLong = await failure(() =>
    fetchFile(host, "/models/builtin/config.json", "config", { maxBytes: 100 }),
  );
  const cut = {
    ...host,
    fetch: async () => new Response("abc", { headers: { "content-length": "9" } }),
  };
  facts.cut = await failure(() => fetchFile(cut, "/cut", "cut"));
  const endless = { ...host, fetch: async () => new Response("abcdef") };
  facts.endless = await failure(() => fetchFile(endless, "/endless", "endless", { maxBytes: 5 }));
  const busy = {
    ...host,
    fetch: async () => new Response("", { status: 503, statusText: "Busy" }),
  };
  facts.busy = await failure(() => fetchFile(busy, "/busy", "busy"));
  facts.unreachable = await failure(() => fetchFile(host, "http://127.0.0.1:1/x", "x"));
  const stop = new AbortController();
  facts.stopped = await failure(() =>
    fetchFile(host, "/models/builtin/model.safetensors", "stopped", {
      signal: stop.signal,
      onProgress: () => stop.abort(new Error("enough")),
    }),
  );
  facts.left = await names();
  return facts;
}
