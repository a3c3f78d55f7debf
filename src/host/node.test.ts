import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { nodeHost } from "./node.ts";
import { decodeUtf8 } from "./utf8.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-host-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const { files } = nodeHost();
let folder = "";
let count = 0;
beforeEach(async () => {
  folder = join(root, String(count++));
  await files.makeDirectory(folder);
});

describe("files of a Node host", () => {
  it("writes, reads back and leaves nothing but the file", async () => {
    const path = files.join(folder, "a.txt");
    await files.writeText(path, "one\n");
    await files.writeText(path, "zwei — 二\n");
    expect(await files.readText(path)).toBe("zwei — 二\n");
    await files.append(path, "three\n");
    expect(await files.readText(path)).toBe("zwei — 二\nthree\n");
    expect(readdirSync(folder)).toEqual(["a.txt"]);
  });

  it("shows the old content until commit", async () => {
    const path = files.join(folder, "a.bin");
    await files.writeBytes(path, Uint8Array.of(1));
    const writer = await files.create(path);
    await writer.write(Uint8Array.of(2, 3));
    expect(await files.readBytes(path)).toEqual(Uint8Array.of(1));
    expect(readdirSync(folder)).toHaveLength(2);
    expect(readdirSync(folder)[1]).toMatch(/^a\.bin\.tmp-\d+-\d+$/);
    await writer.commit();
    expect(await files.readBytes(path)).toEqual(Uint8Array.of(2, 3));
    await writer.abort();
    expect(readdirSync(folder)).toEqual(["a.bin"]);
    await expect(writer.write(Uint8Array.of(4))).rejects.toThrow(
      `${path}: this writer is committed — create another to write again.`,
    );
  });

  it("removes the temporary file on abort and on a failed commit", async () => {
    const aborted = await files.create(files.join(folder, "gone"));
    await aborted.abort();
    await aborted.abort();
    const target = files.join(folder, "folder");
    await files.makeDirectory(target);
    const writer = await files.create(target);
    await writer.write(Uint8Array.of(1));
    await expect(writer.commit()).rejects.toThrow(
      `${target}: is a folder, a file is needed — check the path.`,
    );
    expect(readdirSync(folder)).toEqual(["folder"]);
  });

  it("replaces a link itself and not the file it points to", async () => {
    writeFileSync(join(folder, "blob"), "shared");
    symlinkSync(join(folder, "blob"), join(folder, "link"));
    await files.writeText(join(folder, "link"), "mine");
    expect(await files.readText(join(folder, "blob"))).toBe("shared");
    expect(await files.readText(join(folder, "link"))).toBe("mine");
  });

  it("says which path is missing, and keeps the cause", async () => {
    const path = files.join(folder, "none.txt");
    const sentence = `${path}: no such file or folder — check the path.`;
    for (const call of [
      () => files.readText(path),
      () => files.readBytes(path),
      () => files.open(path),
      () => files.list(path),
    ]) {
      await expect(call()).rejects.toMatchObject({
        message: sentence,
        code: "missing",
        details: { path },
        cause: { code: "ENOENT" },
      });
    }
    const inNoFolder = files.join(path, "x");
    await expect(files.writeText(inNoFolder, "x")).rejects.toThrow(
      `${inNoFolder}: no such file or folder — check the path.`,
    );
    expect(await files.info(path)).toBeUndefined();
    await files.remove(path);
  });

  it("refuses folders and pipes where a file is needed", async () => {
    await expect(files.open(folder)).rejects.toThrow(
      `${folder}: is a folder, a file is needed — check the path.`,
    );
    const pipe = join(folder, "pipe");
    execFileSync("mkfifo", [pipe]);
    await expect(files.readBytes(pipe)).rejects.toThrow(
      `${pipe}: is neither a file nor a folder, a file is needed — check the path.`,
    );
  });

  it("names the byte that is not UTF-8", async () => {
    const path = join(folder, "latin1.txt");
    writeFileSync(path, Buffer.from([0x61, 0xc3, 0xa9, 0xe9, 0x62]));
    await expect(files.readText(path)).rejects.toMatchObject({
      message: `${path}: byte 3 (0xe9) is not UTF-8 — save the file as UTF-8 text.`,
      code: "format",
      details: { path, offset: 3 },
    });
  });

  it("refuses files above the limit before reading them", async () => {
    const path = join(folder, "big");
    writeFileSync(path, "0123456789");
    expect(await files.readText(path, 10)).toBe("0123456789");
    await expect(files.readBytes(path, 9)).rejects.toThrow(
      `${path}: holds 10 bytes, at most 9 are read whole — raise the limit, or stream it.`,
    );
  });

  it("reads at positions and fails past the end", async () => {
    const path = join(folder, "p");
    writeFileSync(path, "0123456789");
    const file = await files.open(path);
    expect(file.bytes).toBe(10);
    const into = new Uint8Array(3);
    await file.read(into, 7);
    expect(Buffer.from(into).toString()).toBe("789");
    await expect(file.read(into, 8)).rejects.toThrow(
      `${path}: ends at byte 10, 3 bytes from 8 were asked — the file is cut short.`,
    );
    await expect(file.read(into, -1)).rejects.toThrow(
      `${path}: offset must be a whole number from 0, got -1.`,
    );
    await file.close();
    await file.close();
    await expect(file.read(into, 0)).rejects.toThrow(`${path}: is closed — open it again to read.`);
  });

  it("streams a file in order", async () => {
    const path = join(folder, "s");
    const bytes = Uint8Array.from({ length: 600_000 }, (_, i) => i % 251);
    await files.writeBytes(path, bytes);
    const chunks: Uint8Array[] = [];
    for await (const chunk of files.stream(path)) chunks.push(chunk);
    expect(chunks.length).toBeGreaterThan(1);
    expect(Buffer.concat(chunks).equals(bytes)).toBe(true);
  });

  it("lists a folder by name and removes it with all it holds", async () => {
    await files.makeDirectory(join(folder, "b", "c"));
    await files.writeText(join(folder, "a"), "12");
    expect(await files.list(folder)).toEqual([
      { path: join(folder, "a"), bytes: 2, isDirectory: false },
      { path: join(folder, "b"), bytes: 0, isDirectory: true },
    ]);
    await files.remove(join(folder, "b"));
    expect(readdirSync(folder)).toEqual(["a"]);
    await expect(files.remove("/")).rejects.toThrow(
      'remove: "/" is the root of the file system — name a folder in it.',
    );
  });
});

describe("decodeUtf8", () => {
  it("finds the first bad byte in each way that UTF-8 can be broken", () => {
    const bad: [string, number[], number][] = [
      ["lone continuation", [0x61, 0x80], 1],
      ["overlong two bytes", [0xc0, 0x80], 0],
      ["overlong three bytes", [0x61, 0xe0, 0x80, 0x80], 1],
      ["surrogate", [0xed, 0xa0, 0x80], 0],
      ["past U+10FFFF", [0xf4, 0x90, 0x80, 0x80], 0],
      ["cut short", [0x61, 0xe2, 0x82], 1],
      ["lead byte 0xff", [0xff], 0],
    ];
    for (const [what, bytes, offset] of bad) {
      expect(() => decodeUtf8(Uint8Array.from(bytes), "f"), what).toThrow(`f: byte ${offset} (0x`);
    }
  });

  it("keeps every valid code point and the byte order mark", () => {
    const text = "\ufeffa\u0000é\u07ff\u0800\ud7ff\ue000\uffff\u{10000}\u{10ffff}";
    expect(decodeUtf8(new TextEncoder().encode(text), "f")).toBe(text);
  });
});
