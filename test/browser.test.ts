/** The library in a page of headless Chromium: its host, and training beside Node's. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import * as library from "../src/index.ts";
import {
  chromiumPath,
  isChromiumRequired,
  openBrowser,
  type TestBrowser,
  withoutChromium,
} from "./support/chromium.ts";
import { train, trainTiny, write } from "./support/page/train.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const builtin = join(root, "models", "builtin");
const { files } = nodeHost();

test.runIf(isChromiumRequired)("Chromium is there, as PLASTICITY_REQUIRE_WEBGPU=1 asks", () => {
  expect(
    chromiumPath,
    "no chromium in PATH — install it, or set PLASTICITY_CHROMIUM",
  ).toBeDefined();
});

interface Trained {
  readonly losses: readonly number[];
  readonly text: string;
  readonly maxThreads: number;
  readonly weights: readonly number[];
  readonly config: string;
  /** What the example's plan says that it takes, and what ONNX Runtime's memory grew to. */
  readonly estimate: { readonly heap: number; readonly total: number };
  readonly heap: number;
}

interface Failure {
  readonly message: string;
  readonly code: string;
  readonly details: Record<string, unknown>;
}

describe.skipIf(!chromiumPath)(`in a page${withoutChromium}`, () => {
  let browser: TestBrowser;
  const folder = mkdtempSync(join(tmpdir(), "plasticity-browser-"));
  beforeAll(async () => {
    browser = await openBrowser({ webgpu: true });
  }, 120_000);
  afterAll(async () => {
    rmSync(folder, { recursive: true });
    await browser?.close();
  });

  const expectClose = (actual: readonly number[], expected: readonly number[]): void => {
    expect(actual).toHaveLength(expected.length);
    actual.forEach((value, i) => {
      expect(Math.abs(value - expected[i]!), `step ${i + 1}`).toBeLessThan(1e-4);
    });
  };

  describe.each([false, true])("files, in a worker: %s", (inWorker) => {
    let facts: Record<string, unknown>;
    beforeAll(async () => {
      facts = await browser.run("files.js", {}, { inWorker });
    }, 120_000);
    const failed = (name: string): Failure => facts[name] as Failure;

    it("are written, read back and replaced whole", () => {
      expect(facts["text"]).toBe("zwei — 二\nthree\n");
      expect(facts["names"]).toEqual(["a.txt"]);
      expect(facts["before"]).toEqual([1]);
      const during = facts["during"] as string[];
      expect(during).toHaveLength(3);
      expect(during[2]).toMatch(/^b\.tmp-\w+-\d+$/);
      expect(facts["after"]).toEqual([2, 3]);
      expect(failed("twice").message).toBe(
        "b: this writer is committed — create another to write again.",
      );
      expect(facts["afterAbort"]).toEqual(["a.txt", "b"]);
    });

    it("that are missing are named", () => {
      const paths = ["none", "none", "none", "none/x", "none/x", "a.txt/x"];
      expect(facts["missing"]).toEqual(
        paths.map((path) => ({
          message: `${path}: no such file or folder — check the path.`,
          code: "missing",
          details: { path },
        })),
      );
      expect(facts["noInfo"]).toBe(true);
    });

    it("stand in folders", () => {
      expect(failed("folder").message).toBe(
        "folder: is a folder, a file is needed — check the path.",
      );
      expect(failed("onFolder")).toBeDefined();
      expect(facts["list"]).toEqual([{ path: "folder/inner", bytes: 0, isDirectory: true }]);
      expect(facts["inner"]).toEqual([{ path: "folder/inner/c", bytes: 2, isDirectory: false }]);
      expect(facts["removed"]).toEqual(["a.txt", "b"]);
      expect(failed("root").message).toBe(
        'remove: "/" is the root of the file system — name a folder in it.',
      );
      expect(facts["bad"]).toEqual(["option", "option", "option"]);
    });

    it("are read at positions, up to a limit, and as streams", () => {
      expect(failed("limit").message).toBe(
        "digits: holds 10 bytes, at most 9 are read whole — raise the limit, or stream it.",
      );
      expect(facts["atLimit"]).toBe("0123456789");
      expect(facts["read"]).toEqual([10, "789"]);
      expect(failed("pastEnd").message).toBe(
        "digits: ends at byte 10, 3 bytes from 8 were asked — the file is cut short.",
      );
      expect(failed("negative").message).toBe(
        "digits: offset must be a whole number from 0, got -1.",
      );
      expect(failed("closed").message).toBe("digits: is closed — open it again to read.");
      expect(facts["stream"]).toEqual({ chunks: 3, streamed: 2_500_000, isSame: true });
    });

    it("are locked for one page at a time", () => {
      expect(failed("locked").message).toBe(
        "run: another page or worker has the lock — close it, or wait.",
      );
    });

    it("are written where the browser cannot move them, and not where there is no room", () => {
      expect(facts["copied"]).toBe("again");
      expect(facts["copies"]).toEqual(["copied"]);
      expect(failed("full").message).toMatch(
        /^full: the browser has no room for it, \d+ bytes are used and \d+ available — /,
      );
      expect(failed("full").details["available"]).toBeGreaterThan(0);
      expect(facts["noFull"]).toBe(true);
      expect(facts["space"]).toBe(true);
    });

    it("are fetched with progress, checked, and left out where that fails", () => {
      const bytes = readFileSync(join(builtin, "model.safetensors")).length;
      expect(facts["fetched"]).toBe(bytes);
      expect(facts["stored"]).toBe(bytes);
      expect(facts["progress"]).toEqual({
        isRising: true,
        last: { received: bytes, total: bytes },
      });
      expect(failed("notFound").message).toMatch(/^\/none\.bin: the server has no such file \(404/);
      expect(failed("tooLong").message).toMatch(
        /holds \d+ bytes or more, at most 100 are taken\.$/,
      );
      expect(failed("cut").message).toBe(
        "/cut: ended after 3 of 9 bytes — the connection was cut, try again.",
      );
      expect(failed("endless").message).toMatch(/at most 5 are taken/);
      expect(failed("busy").message).toBe("/busy: the server answered 503 Busy — try again later.");
      expect(failed("unreachable").message).toMatch(/: cannot be reached — /);
      expect(failed("stopped").message).toBe("enough");
      expect(facts["left"]).toEqual(["a.txt", "b", "copied", "digits", "many", "model"]);
    });
  });

  describe("fine-tuning", () => {
    const steps = 6;
    let native: { losses: readonly number[]; text: string };
    let page: Trained;
    const out = join(folder, "native");
    beforeAll(async () => {
      const backend = await library.nodeOrt({ threads: 2 });
      native = await train(library, backend, files, { folder: builtin, out, steps });
      page = await browser.run<Trained>("finetune.js", { numThreads: 1, steps });
    }, 120_000);

    it("gives Node's losses on one thread of WebAssembly", () => {
      expect(page.maxThreads).toBe(1);
      expectClose(page.losses, native.losses);
      expect(page.losses.at(-1)!).toBeLessThan(page.losses[0]! - 0.5);
      expect(page.text).toBe(native.text);
    });

    it("gives them on two threads, in a worker", async () => {
      const two = await browser.run<Trained>(
        "finetune.js",
        { numThreads: 2, steps },
        { inWorker: true },
      );
      expect(two.maxThreads).toBe(2);
      expectClose(two.losses, native.losses);
    });

    it("takes the memory that the example's plan says", () => {
      expect(page.heap).toBeGreaterThan(2 ** 24);
      expect(page.heap / page.estimate.heap).toBeGreaterThan(0.6);
      expect(page.heap / page.estimate.heap).toBeLessThan(1.15);
      expect(page.estimate.total).toBeGreaterThan(page.estimate.heap);
    });

    it("keeps an adapter with which Node writes the same text, in the bytes that Node writes", async () => {
      const made = join(folder, "made");
      await files.makeDirectory(made);
      const weights = join(made, "adapter_model.safetensors");
      writeFileSync(weights, Uint8Array.from(page.weights));
      writeFileSync(join(made, "adapter_config.json"), page.config);
      const loaded = await library.loadModel(files, builtin);
      const tokenizer = await library.loadTokenizer(files, builtin);
      const trained = await library.loadAdapter(files, made, loaded.model);
      const backend = await library.nodeOrt();
      const text = await write(library, loaded, tokenizer, trained, backend);
      expect(text).toBe(page.text);
      expect(text).not.toBe(await write(library, loaded, tokenizer, undefined, backend));
      const again = join(folder, "again");
      await library.saveAdapter(files, again, trained.adapter, trained.params, { base: "builtin" });
      for (const name of ["adapter_model.safetensors", "adapter_config.json"]) {
        expect(readFileSync(join(again, name)).equals(readFileSync(join(made, name))), name).toBe(
          true,
        );
      }
      expect(page.config).toBe(readFileSync(join(out, "adapter_config.json"), "utf8"));
    });

    it("gives Node's losses on WebGPU", async () => {
      const gpu = await browser.run<Trained>(
        "finetune.js",
        { provider: "webgpu", steps: 2, isTiny: true },
        { inWorker: true },
      );
      expectClose(gpu.losses, await trainTiny(library, await library.nodeOrt(), 2));
    });
  });

  it("runs the code of the guide", async () => {
    const guide = readFileSync(join(root, "docs", "in-the-browser.md"), "utf8");
    const code = /^```js\n([\s\S]*?)^```$/m.exec(guide)![1]!;
    const here = code.replace("console.log(", "const said = (");
    expect(here).not.toBe(code);
    const said = await browser.run<string>(`${here}\nexport default () => said;`);
    expect(said).toMatch(/^lights\(/);
  });

  it("uses one thread where the server sends no headers for more", async () => {
    const plain = await openBrowser({ isolated: false });
    try {
      const facts = await plain.run<unknown>(
        `import { webOrt } from "plasticity";
         export default async () => [crossOriginIsolated, (await webOrt()).binding.maxThreads];`,
      );
      expect(facts).toEqual([false, 1]);
    } finally {
      await plain.close();
    }
  });
});
