import { appendFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { fixture } from "../../test/support/fixture.ts";
import { nodeHost } from "../host/node.ts";
import { crc32c } from "./crc32c.ts";
import {
  EventWriter,
  eventBytes,
  keepEvents,
  type RunEvent,
  sessionStartBytes,
  versionBytes,
} from "./tensorboard.ts";

interface Recorded extends RunEvent {
  readonly record: string;
}
/** Records that TensorBoard's own writer made. */
const theirs = fixture<{
  readonly version: { readonly record: string };
  readonly events: readonly Recorded[];
  readonly start: Recorded;
}>("tensorboard");

const { files } = nodeHost();
const scratch = await mkdtemp(join(tmpdir(), "plasticity-tensorboard-"));
afterAll(() => rm(scratch, { recursive: true }));

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const unhex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, "hex"));

describe("crc32c", () => {
  // RFC 3720, appendix B.4, and the check value of the polynomial's catalogue.
  it.each([
    [new Uint8Array(32), 0x8a9136aa],
    [new Uint8Array(32).fill(0xff), 0x62a8ab43],
    [Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
    [new TextEncoder().encode("123456789"), 0xe3069283],
  ])("gives the published sums (%#)", (bytes, sum) => {
    expect(crc32c(bytes)).toBe(sum);
    for (const cut of [0, 1, 7, 9, bytes.length]) {
      expect(crc32c(bytes.subarray(cut), crc32c(bytes.subarray(0, cut)))).toBe(sum);
    }
  });
});

describe("eventBytes", () => {
  it("writes the bytes that TensorBoard writes", () => {
    expect(theirs.events.length).toBe(5);
    for (const { record, ...event } of theirs.events) expect(hex(eventBytes(event))).toBe(record);
    expect(hex(sessionStartBytes(theirs.start.wallTime, theirs.start.step))).toBe(
      theirs.start.record,
    );
  });

  it.each([
    [{ step: -1 }, "tensorboard: step must be a whole number from 0, got -1."],
    [{ step: 1.5 }, "tensorboard: step must be a whole number from 0, got 1.5."],
    [{ wallTime: Number.NaN }, "tensorboard: wallTime must be seconds since the epoch, got NaN."],
    [{ scalars: { "": 1 } }, "tensorboard: a tag must have 1 to 1024 characters, got 0."],
    [
      { texts: { note: "x".repeat(2 ** 20 + 1) } },
      'tensorboard: text "note" has 1048577 bytes, at most 1048576 are written — shorten it.',
    ],
  ])("refuses %#", (change, sentence) => {
    expect(() => eventBytes({ wallTime: 1, step: 0, ...change })).toThrow(sentence);
  });
});

describe("keepEvents", () => {
  const all = [theirs.version, ...theirs.events].map(({ record }) => unhex(record));
  const path = join(scratch, "events.out.tfevents.1.x");

  it("cuts a file of TensorBoard's to a step, byte for byte", async () => {
    await writeFile(path, Buffer.concat(all));
    // Steps are 0, 1, 300, 70000 and 2^53 - 1.
    expect(await keepEvents(files, path, 300)).toBe(2);
    expect(hex(await readFile(path))).toBe(hex(Buffer.concat(all.slice(0, 4))));
  });

  it("leaves a file alone of which nothing goes", async () => {
    await writeFile(path, Buffer.concat(all));
    const untouched = { ...files, writeBytes: () => Promise.reject(new Error("written")) };
    expect(await keepEvents(untouched, path, 2 ** 53 - 1)).toBe(0);
  });

  it("drops a last record that was cut off at any byte", async () => {
    const whole = Buffer.concat(all.slice(0, 3));
    for (let bytes = 1; bytes < all[3]!.length; bytes++) {
      await writeFile(path, Buffer.concat([whole, all[3]!.subarray(0, bytes)]));
      expect(await keepEvents(files, path, 2 ** 53 - 1)).toBe(0);
      expect(hex(await readFile(path))).toBe(hex(whole));
    }
  });

  it("refuses a file with any changed bit, and leaves it as it was", async () => {
    const whole = Buffer.concat(all.slice(0, 3));
    for (let bit = 0; bit < whole.length * 8; bit += 7) {
      const changed = Uint8Array.from(whole);
      changed[bit >> 3]! ^= 1 << (bit & 7);
      await writeFile(path, changed);
      await expect(keepEvents(files, path, 0)).rejects.toThrow(
        /^.*events\.out\.tfevents\.1\.x: the (length|content) of the record at byte \d+ does not match its sum — the file is damaged; move it away to go on without its curves\.$/,
      );
      expect(hex(await readFile(path))).toBe(hex(changed));
    }
  });

  it("names a record that is framed well and is no event", async () => {
    // A record of one byte, 0x0d: field 1 as four bytes, which are not there. Its sums are right.
    const record = eventBytes({ wallTime: 0, step: 0 });
    expect(record.length).toBe(16 + 11);
    const framed = frameOf(Uint8Array.of(0x0d));
    await writeFile(path, framed);
    await expect(keepEvents(files, path, 0)).rejects.toThrow(
      "the record at byte 0 is no event: field 1 passes its end.",
    );
    await writeFile(
      path,
      frameOf(Uint8Array.of(0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)),
    );
    await expect(keepEvents(files, path, 0)).rejects.toThrow(
      "the record at byte 0 is no event: it holds a number past 2^53 - 1.",
    );
  });
});

/** A record around bytes, made apart from the code under test but for its sum of bytes. */
function frameOf(bytes: Uint8Array): Uint8Array {
  const masked = (part: Uint8Array): number => {
    const crc = BigInt(crc32c(part));
    return Number((((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffffffffn);
  };
  const record = Buffer.alloc(bytes.length + 16);
  record.writeBigUInt64LE(BigInt(bytes.length), 0);
  record.writeUInt32LE(masked(record.subarray(0, 8)), 8);
  record.set(bytes, 12);
  record.writeUInt32LE(masked(bytes), 12 + bytes.length);
  return record;
}

describe("EventWriter", () => {
  it("appends what waits at each flush, after the record of the version", async () => {
    const folder = join(scratch, "run");
    const writer = await EventWriter.open(files, folder, { wallTime: 12.5, machine: "a b/c" });
    expect(basename(writer.path)).toBe("events.out.tfevents.0000000012.a-b-c.0");
    expect(await readdir(folder)).toEqual([]);
    const one: RunEvent = { wallTime: 13, step: 1, scalars: { "train/loss": 2 } };
    const two: RunEvent = { wallTime: 14, step: 2, texts: { note: "ä" } };
    writer.add(one);
    await writer.flush();
    await writer.flush();
    writer.add(two);
    await writer.flush();
    expect(hex(await readFile(writer.path))).toBe(
      hex(versionBytes(12.5)) + hex(eventBytes(one)) + hex(eventBytes(two)),
    );
  });

  it("goes on after a stop without doubled steps, even where the stop cut a record", async () => {
    const folder = join(scratch, "resumed");
    const event = (step: number): RunEvent => ({
      wallTime: 5 + step / 10,
      step,
      scalars: { loss: step },
    });
    const first = await EventWriter.open(files, folder, { wallTime: 5 });
    for (let step = 0; step <= 4; step++) first.add(event(step));
    await first.flush();
    await appendFile(first.path, eventBytes(event(5)).subarray(0, 20));
    await writeFile(join(folder, "metrics.jsonl"), "{}\n");

    const second = await EventWriter.open(files, folder, { wallTime: 3, resumeStep: 2 });
    // The clock was set back: nothing gets a time before what is there.
    second.add({ ...event(3), wallTime: 4 });
    await second.flush();
    expect(basename(second.path)).toBe("events.out.tfevents.0000000005.plasticity.1");
    expect(hex(await readFile(first.path))).toBe(
      [versionBytes(5), ...[0, 1, 2].map((step) => eventBytes(event(step)))].map(hex).join(""),
    );
    expect(hex(await readFile(second.path))).toBe(
      [versionBytes(5.2), sessionStartBytes(5.2, 3), eventBytes({ ...event(3), wallTime: 5.2 })]
        .map(hex)
        .join(""),
    );
    expect(await readFile(join(folder, "metrics.jsonl"), "utf8")).toBe("{}\n");
  });
});
