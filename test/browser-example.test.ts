/** The example page, driven as a visitor would: paste, refuse, train, compare, keep, download. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import {
  Decoder,
  defaultTemplate,
  loadAdapter,
  loadModel,
  loadTokenizer,
  nodeOrt,
  saveAdapter,
} from "../src/index.ts";
import {
  chromiumPath,
  openBrowser,
  type TestBrowser,
  withoutChromium,
} from "./support/chromium.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const builtin = join(root, "models", "builtin");
const { files } = nodeHost();
/** Set to make the picture of the guide anew, with the sample trained. */
const isUpdating = process.env["PLASTICITY_UPDATE_SCREENSHOT"] === "1";
const picture = join(root, "docs", "images", "browser.png");

const pasted = [
  "wake me at seven => alarm(time: seven)",
  "turn on the lamp in the hall => lights(room: the hall, state: on)",
  "turn off the lights in my room => lights(room: my room, state: off)",
  "tell Emma that dinner is ready => message(to: Emma, text: dinner is ready)",
].join("\n");
const prompt = "tell Harriet that the train is late";
const size = { width: 1000, height: 1130 };
const patience = { timeout: 100_000 };

const text = async (page: Page, id: string): Promise<string> =>
  (await page.textContent(`#${id}`)) ?? "";

/** Waits until an element's text matches. */
async function until(
  page: Page,
  id: string,
  pattern: RegExp,
  { timeout } = patience,
): Promise<void> {
  const met = `new RegExp(${JSON.stringify(pattern.source)}).test(document.getElementById(${JSON.stringify(id)}).textContent)`;
  await page.waitForFunction(met, undefined, { timeout });
}

/** Waits until nothing is under way and training is allowed. */
async function untilReady(page: Page): Promise<void> {
  await page.waitForSelector("#train:not([disabled])", patience);
}

async function fill(page: Page, values: Readonly<Record<string, string>>): Promise<void> {
  for (const [id, value] of Object.entries(values)) await page.fill(`#${id}`, value);
}

describe.skipIf(!chromiumPath)(`the example page${withoutChromium}`, () => {
  let browser: TestBrowser;
  let page: Page;
  const folder = mkdtempSync(join(tmpdir(), "plasticity-example-"));

  beforeAll(async () => {
    browser = await openBrowser();
    page = await browser.open("/?engine=wasm+1", size);
    await untilReady(page);
  }, 120_000);
  afterAll(async () => {
    rmSync(folder, { recursive: true });
    await browser?.close();
  });

  it("loads the shipped model and its sample, and says what training would take", async () => {
    expect(await text(page, "engine-state")).toBe(
      "Ready: 5.2 million parameters, on the CPU, one thread.",
    );
    expect(await text(page, "data-state")).toMatch(/^240 pairs, [\d,]+ tokens\.$/);
    expect(await text(page, "budget-text")).toMatch(/^Training will take about \d+ MiB of memory$/);
    expect(await text(page, "budget-limit")).toMatch(/^limit [\d.]+ [MG]iB$/);
  });

  it("refuses beforehand what does not fit, and offers what does", async () => {
    await page.click("summary");
    await fill(page, { memory: "260", "batch-size": "16" });
    await page.waitForSelector("#refusal:not([hidden])", patience);
    expect(await page.isDisabled("#train")).toBe(true);
    expect(await text(page, "refusal-text")).toMatch(
      /^This does not fit: it needs about \d+ MiB, and may take 260 MiB\. What fits: the same steps in \d+ parts, about \d+ MiB\.$/,
    );
    await page.click("#use-smaller");
    await untilReady(page);
    expect(await page.isVisible("#refusal")).toBe(false);
    await fill(page, { memory: "64" });
    await page.waitForSelector("#refusal:not([hidden])", patience);
    expect(await text(page, "refusal-text")).toMatch(/No smaller step fits either/);
    expect(await page.isVisible("#use-smaller")).toBe(false);
    await fill(page, { memory: "2048", "batch-size": "4", accumulate: "1", epochs: "8" });
  });

  it("says what is wrong with a text or a setting", async () => {
    await fill(page, { text: "a => b\nno arrow" });
    await until(page, "data-error", /^Line 2: has no “=>” between prompt and completion/);
    expect(await page.isDisabled("#train")).toBe(true);
    await fill(page, { text: '{"prompt":"a","completion":"b"}\n{"prompt":1}' });
    await until(page, "data-error", /^data\.jsonl:2: /);
    await fill(page, { text: "", rank: "0" });
    await until(page, "data-error", /^Rank of the adapter: /);
    await fill(page, { rank: "4" });
    await until(page, "data-error", /^The text is empty/);
    await fill(page, { text: "First paragraph.\nStill it.\n\nSecond." });
    await untilReady(page);
    expect(await text(page, "data-state")).toMatch(/^2 texts, \d+ tokens\.$/);
  });

  it("trains on a pasted text by keyboard, draws the curve, and writes otherwise after", async () => {
    await fill(page, { text: pasted, prompt });
    await untilReady(page);
    await page.focus("#train");
    await page.keyboard.press("Enter");
    await until(page, "train-state", /^Done after 8 steps/);
    await untilReady(page);
    expect(await page.locator("#curve circle").count()).toBe(8);
    const [first, last] = /: ([\d.]+) at the first, ([\d.]+) after 8 of 8$/
      .exec((await page.getAttribute("#curve", "aria-label"))!)!
      .slice(1)
      .map(Number);
    expect(last!).toBeLessThan(first! - 1);
    expect(await text(page, "step")).toBe("8 / 8");
    expect(await text(page, "after")).not.toBe(await text(page, "before"));
  });

  it("gives an adapter to download that writes the same in Node, byte by byte what Node saves", async () => {
    const made = join(folder, "made");
    mkdirSync(made);
    for (const name of ["weights", "configuration"]) {
      const [download] = await Promise.all([
        page.waitForEvent("download", patience),
        page.click(`#adapters button:has-text("Download ${name}")`),
      ]);
      await download.saveAs(join(made, download.suggestedFilename()));
    }
    const loaded = await loadModel(files, builtin);
    const tokenizer = await loadTokenizer(files, builtin);
    const adapter = await loadAdapter(files, made, loaded.model);
    const decoder = new Decoder(loaded.model, loaded.params, await nodeOrt(), { adapter });
    const asked = tokenizer.encode(defaultTemplate.replace("{prompt}", prompt));
    const [ids] = await decoder.generate([asked], {
      maxNewTokens: 48,
      stopIds: [tokenizer.eosId!],
    });
    await decoder.release();
    const written = tokenizer.decode(ids!, { skipSpecial: true }).trim();
    expect(written).toBe(await text(page, "after"));
    const again = join(folder, "again");
    await saveAdapter(files, again, adapter.adapter, adapter.params, { base: "builtin" });
    for (const name of ["adapter_model.safetensors", "adapter_config.json"]) {
      const isSame = readFileSync(join(again, name)).equals(readFileSync(join(made, name)));
      expect(isSame, name).toBe(true);
    }
  });

  it("stops after the step at hand, and keeps what was learnt", async () => {
    await fill(page, { epochs: "50" });
    await untilReady(page);
    await page.click("#train");
    await until(page, "step", /^[1-9]/);
    await page.click("#stop");
    await until(page, "train-state", /^Stopped after \d+ steps/);
    await untilReady(page);
    expect(Number(/after (\d+)/.exec(await text(page, "train-state"))![1])).toBeLessThan(50);
    await expect.poll(() => page.locator("#adapters .name").count()).toBe(2);
  });

  it("finds its adapters again after a reload, uses one, and removes one", async () => {
    const after = await text(page, "after");
    await page.reload();
    await untilReady(page);
    expect(await page.locator("#adapters .name").count()).toBe(2);
    await fill(page, { prompt });
    await page.locator('#adapters button:has-text("Use")').first().click();
    await until(page, "adapters", / · in use/);
    await untilReady(page);
    expect(await text(page, "after")).toBe(after);
    await page.locator('#adapters button:has-text("Remove")').last().click();
    await expect.poll(() => page.locator("#adapters .name").count()).toBe(1);
  });

  it("names every field and button, and fits a phone", async () => {
    const unnamed = await page.evaluate(
      `[...document.querySelectorAll("input, textarea, select, button")]
        .filter((field) => !(field.labels?.length || field.textContent.trim() || field.ariaLabel))
        .map(({ id }) => id)`,
    );
    expect(unnamed).toEqual([]);
    for (const width of [390, 320]) {
      await page.setViewportSize({ width, height: 844 });
      const wide = await page.evaluate("document.documentElement.scrollWidth");
      expect(wide, `at ${width} pixels`).toBeLessThanOrEqual(width);
    }
    await page.setViewportSize(size);
  });

  it("looks as in the guide's picture", async () => {
    if (isUpdating) {
      await page.click('#adapters button:has-text("Remove")');
      await page.click("#sample");
      await untilReady(page);
      await page.click("#train");
      await until(page, "train-state", /^Done after 90 steps/, { timeout: 500_000 });
      await untilReady(page);
    }
    const png = await page.screenshot({ animations: "disabled" });
    expect([png.readUInt32BE(16), png.readUInt32BE(20)]).toEqual([size.width, size.height]);
    expect(png.length).toBeLessThan(200 * 1024);
    if (isUpdating) {
      mkdirSync(join(root, "docs", "images"), { recursive: true });
      writeFileSync(picture, png);
    }
    const kept = readFileSync(picture);
    expect([kept.readUInt32BE(16), kept.readUInt32BE(20)]).toEqual([size.width, size.height]);
    expect(kept.length).toBeLessThan(200 * 1024);
  }, 600_000);

  it("reports no errors of its own on the way", () => {
    expect(browser.errors).toEqual([]);
  });
});
