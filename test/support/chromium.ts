/** Runs modules in a page of an installed Chromium, on the built package and without a bundler. */
import { accessSync, constants, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, chromium, type Page } from "playwright-core";
import { startServer } from "../../examples/browser/serve.mjs";

const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

function findChromium(): string | undefined {
  const given = process.env["PLASTICITY_CHROMIUM"];
  const folders = (process.env["PATH"] ?? "").split(delimiter).filter((folder) => folder !== "");
  const paths = given ? [given] : names.flatMap((name) => folders.map((dir) => join(dir, name)));
  return paths.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Where Chromium is; `undefined` where there is none, and its tests are skipped. */
export const chromiumPath: string | undefined = findChromium();

/** Whether a machine without Chromium fails the tests instead of skipping some. */
export const isChromiumRequired: boolean = process.env["PLASTICITY_REQUIRE_WEBGPU"] === "1";

/** Why tests are skipped, for their names. */
export const withoutChromium: string = chromiumPath
  ? ""
  : " (skipped: no Chromium in PATH or PLASTICITY_CHROMIUM)";

export interface BrowserOptions {
  /** Send the headers that threads need; default true. */
  readonly isolated?: boolean;
  /** Start with WebGPU on the software adapter; default false. */
  readonly webgpu?: boolean;
  /** More addresses and the folders that they show. */
  readonly roots?: Readonly<Record<string, string>>;
}

export interface RunOptions {
  /** Milliseconds; default 100 s. */
  readonly timeout?: number;
  /** Run in a worker instead of the page; default false. */
  readonly inWorker?: boolean;
}

export interface TestBrowser {
  readonly url: string;
  /** What pages reported as errors so far, uncaught ones included. */
  readonly errors: readonly string[];
  /**
   * Runs a module in a fresh page and returns what its default export gives for `args`; both travel as
   * JSON. The module may import "plasticity", "plasticity/browser" and the dependencies.
   * @param module its text, or the name of a file in test/support/page
   */
  run<T>(module: string, args?: unknown, options?: RunOptions): Promise<T>;
  /** A page to drive; it keeps its own files and is closed with the browser. */
  open(path: string, size?: { readonly width: number; readonly height: number }): Promise<Page>;
  close(): Promise<void>;
}

/** Runs in the page: the address of a module, its argument, and where, to what it returns. */
const runner = `async ([address, args, inWorker]) => {
  if (!inWorker) return (await import(address)).default(args);
  const worker = new Worker("/page/worker.js", { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onerror = (event) => reject(new Error(event.message ?? "the worker does not load"));
    worker.onmessage = ({ data }) => {
      worker.terminate();
      if (data.error !== undefined) reject(new Error(data.error));
      else resolve(data.value);
    };
    worker.postMessage({ address, args });
  });
}`;

/** Starts a server and a browser; whoever opens it closes it. */
export async function openBrowser(options: BrowserOptions = {}): Promise<TestBrowser> {
  if (chromiumPath === undefined) throw new Error("there is no Chromium — see chromiumPath.");
  const folder = mkdtempSync(join(tmpdir(), "plasticity-page-"));
  writeFileSync(
    join(folder, "blank.html"),
    `<!doctype html><html lang="en"><meta charset="utf-8"><title>test</title><link rel="icon" href="data:,">`,
  );
  const server = await startServer({
    isolated: options.isolated ?? true,
    roots: {
      "/test": folder,
      "/page": fileURLToPath(new URL("page", import.meta.url)),
      ...options.roots,
    },
  });
  let browser: Browser;
  try {
    browser = await chromium.launch({
      executablePath: chromiumPath,
      args: options.webgpu
        ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
        : [],
    });
  } catch (error) {
    await server.close();
    throw error;
  }
  const errors: string[] = [];
  let count = 0;

  const open: TestBrowser["open"] = async (path, size = { width: 1280, height: 800 }) => {
    const context = await browser.newContext({ viewport: size });
    const page = await context.newPage();
    page.on("console", (message) => {
      if (message.type() === "error") errors.push(message.text());
    });
    page.on("pageerror", (error) => errors.push(error.stack ?? error.message));
    await page.goto(server.url + path);
    return page;
  };

  return {
    url: server.url,
    errors,
    open,
    async run<T>(module: string, args?: unknown, { timeout = 100_000, inWorker }: RunOptions = {}) {
      let address = `/page/${module}`;
      if (!/^[\w-]+\.js$/.test(module)) {
        const name = `module-${count++}.js`;
        writeFileSync(join(folder, name), module);
        address = `/test/${name}`;
      }
      const before = errors.length;
      const page = await open("/test/blank.html");
      let timer: NodeJS.Timeout | undefined;
      try {
        return await Promise.race([
          // A string is evaluated as it stands; vitest would rewrite the imports of a function.
          page.evaluate(
            `(${runner})(${JSON.stringify([address, args ?? null, inWorker ?? false])})`,
          ) as Promise<T>,
          new Promise<never>((_, reject) => {
            timer = setTimeout(
              () => reject(new Error(`the page did not answer within ${timeout} ms.`)),
              timeout,
            );
          }),
        ]);
      } catch (error) {
        const said = errors.slice(before).join("\n");
        if (said !== "") (error as Error).message += `\nThe page reported:\n${said}`;
        throw error;
      } finally {
        clearTimeout(timer);
        await page.context().close();
      }
    },
    async close() {
      await browser.close();
      await server.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** Opens a browser for one module and closes it: see `TestBrowser.run`. */
export async function runInPage<T>(
  module: string,
  args?: unknown,
  options: BrowserOptions & RunOptions = {},
): Promise<T> {
  const browser = await openBrowser(options);
  try {
    return await browser.run<T>(module, args, options);
  } finally {
    await browser.close();
  }
}
