/**
 * TensorBoard event files: scalars and texts of a run, by step.
 *
 * A file is a row of records (TensorFlow's TFRecord), each holding one `Event` message of protocol
 * buffers (tensorflow/tensorboard, `compat/proto/event.proto`, `summary.proto`):
 *
 *   u64 length, u32 masked CRC-32C of it, bytes, u32 masked CRC-32C of them     little-endian
 *   masked = ((crc >> 15) | (crc << 17)) + 0xa282ead8                           modulo 2^32
 *
 * A run that goes on after a stop cuts its old files to the step of its checkpoint and opens a new
 * file that begins with SessionLog START. A viewer that is open sees the new file and drops what it
 * had read beyond that step; one that is started later reads files without doubled steps.
 */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { crc32c } from "./crc32c.ts";

/** What is logged at one moment. */
export interface RunEvent {
  /** Seconds since the epoch. */
  readonly wallTime: number;
  /** Whole number from 0. */
  readonly step: number;
  /** Number by tag, `train/loss`; kept as float32. NaN and infinities are allowed. */
  readonly scalars?: Readonly<Record<string, number>>;
  /** Text by tag, shown as Markdown. */
  readonly texts?: Readonly<Record<string, string>>;
}

/** Bytes of one event file that are read: past it, a file is refused. */
const maxFileBytes = 2 ** 28;
const maxTagLength = 1024;
const maxTextBytes = 2 ** 20;
/** Around the bytes of a record: length and its sum before, a sum after. */
const frameBytes = 16;

function maskedCrc(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** A protocol-buffers message, field by field. */
class Message {
  readonly #bytes: number[] = [];

  /** Whole numbers from 0 to 2^53 - 1; zero is the default and is left out. */
  int(field: number, value: number): this {
    if (value === 0) return this;
    this.#varint(field * 8);
    return this.#varint(value);
  }

  double(field: number, value: number): this {
    const view = new DataView(new ArrayBuffer(8));
    view.setFloat64(0, value, true);
    this.#varint(field * 8 + 1);
    return this.#raw(new Uint8Array(view.buffer));
  }

  float(field: number, value: number): this {
    const view = new DataView(new ArrayBuffer(4));
    view.setFloat32(0, value, true);
    this.#varint(field * 8 + 5);
    return this.#raw(new Uint8Array(view.buffer));
  }

  bytes(field: number, value: Message | string | Uint8Array): this {
    const bytes =
      value instanceof Message
        ? value.encode()
        : typeof value === "string"
          ? new TextEncoder().encode(value)
          : value;
    this.#varint(field * 8 + 2);
    this.#varint(bytes.length);
    return this.#raw(bytes);
  }

  encode(): Uint8Array<ArrayBuffer> {
    return Uint8Array.from(this.#bytes);
  }

  #raw(bytes: Uint8Array): this {
    for (const byte of bytes) this.#bytes.push(byte);
    return this;
  }

  #varint(value: number): this {
    let rest = value;
    for (; rest >= 128; rest = Math.floor(rest / 128)) this.#bytes.push((rest % 128) + 128);
    this.#bytes.push(rest);
    return this;
  }
}

function frame(message: Message): Uint8Array<ArrayBuffer> {
  const bytes = message.encode();
  const record = new Uint8Array(bytes.length + frameBytes);
  const view = new DataView(record.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint32(8, maskedCrc(record.subarray(0, 8)), true);
  record.set(bytes, 12);
  view.setUint32(12 + bytes.length, maskedCrc(bytes), true);
  return record;
}

function checkTag(tag: string): void {
  if (tag === "" || tag.length > maxTagLength) {
    throw new OptionError(
      `tensorboard: a tag must have 1 to ${maxTagLength} characters, got ${tag.length}.`,
    );
  }
}

function start({ wallTime, step }: RunEvent): Message {
  if (!Number.isSafeInteger(step) || step < 0) {
    throw new OptionError(`tensorboard: step must be a whole number from 0, got ${step}.`);
  }
  if (!Number.isFinite(wallTime) || wallTime < 0) {
    throw new OptionError(
      `tensorboard: wallTime must be seconds since the epoch, got ${wallTime}.`,
    );
  }
  return new Message().double(1, wallTime).int(2, step);
}

/** A tensor of one text with the mark of the text plugin, as `SummaryWriter.add_text` makes it. */
function textValue(tag: string, text: string): Message {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length > maxTextBytes) {
    throw new OptionError(
      `tensorboard: text ${JSON.stringify(tag)} has ${bytes.length} bytes, at most ${maxTextBytes} are written — shorten it.`,
    );
  }
  const string = 7;
  const shape = new Message().bytes(2, new Message().int(1, 1));
  const tensor = new Message().int(1, string).bytes(2, shape).bytes(8, bytes);
  const metadata = new Message().bytes(1, new Message().bytes(1, "text"));
  return new Message().bytes(1, tag).bytes(8, tensor).bytes(9, metadata);
}

/**
 * One record of an event file: framed, with its sums.
 * @throws OptionError for a step that is no whole number, an empty tag, or a text above 1 MiB.
 */
export function eventBytes(event: RunEvent): Uint8Array<ArrayBuffer> {
  const summary = new Message();
  for (const [tag, value] of Object.entries(event.scalars ?? {})) {
    checkTag(tag);
    summary.bytes(1, new Message().bytes(1, tag).float(2, value));
  }
  for (const [tag, text] of Object.entries(event.texts ?? {})) {
    checkTag(tag);
    summary.bytes(1, textValue(tag, text));
  }
  return frame(start(event).bytes(5, summary));
}

/** The record that every event file begins with. */
export function versionBytes(wallTime: number): Uint8Array<ArrayBuffer> {
  return frame(start({ wallTime, step: 0 }).bytes(3, "brain.Event:2"));
}

/** Says that a run starts (again) at a step: viewers drop what they have from there on. */
export function sessionStartBytes(wallTime: number, step: number): Uint8Array<ArrayBuffer> {
  const started = 1;
  return frame(start({ wallTime, step }).bytes(7, new Message().int(1, started)));
}

/** The step of an encoded Event: the varint of field 2, where every other field is skipped. */
function stepOf(message: Uint8Array, path: string, offset: number): number {
  let at = 0;
  const broken = (what: string): FormatError =>
    new FormatError(`${path}: the record at byte ${offset} is no event: ${what}.`, {
      path,
      offset,
    });
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; scale < 2 ** 56; scale *= 128) {
      const byte = message[at++];
      if (byte === undefined) throw broken("it ends inside a number");
      value += (byte % 128) * scale;
      if (byte < 128) {
        if (!Number.isSafeInteger(value)) break;
        return value;
      }
    }
    throw broken("it holds a number past 2^53 - 1");
  };
  let step = 0;
  while (at < message.length) {
    const key = varint();
    const [field, wire] = [Math.floor(key / 8), key % 8];
    if (field === 2 && wire === 0) {
      step = varint();
      continue;
    }
    let skip = 0;
    if (wire === 0) varint();
    else if (wire === 1) skip = 8;
    else if (wire === 2) skip = varint();
    else if (wire === 5) skip = 4;
    else throw broken(`field ${field} has wire type ${wire}`);
    at += skip;
    if (at > message.length) throw broken(`field ${field} passes its end`);
  }
  return step;
}

interface EventRecord {
  readonly step: number;
  /** The record with its frame. */
  readonly bytes: Uint8Array;
}

/** Records in order; a last one that was cut off while it was written is left out. */
function readRecords(file: Uint8Array, path: string): EventRecord[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const records: EventRecord[] = [];
  let offset = 0;
  const check = (part: Uint8Array, sumAt: number, what: string): void => {
    if (view.getUint32(sumAt, true) === maskedCrc(part)) return;
    throw new FormatError(
      `${path}: the ${what} of the record at byte ${offset} does not match its sum — the file is damaged; move it away to go on without its curves.`,
      { path, offset },
    );
  };
  while (file.length - offset >= 12) {
    check(file.subarray(offset, offset + 8), offset + 8, "length");
    const length = view.getUint32(offset + 4, true) * 2 ** 32 + view.getUint32(offset, true);
    if (length > file.length - offset - frameBytes) break;
    const message = file.subarray(offset + 12, offset + 12 + length);
    check(message, offset + 12 + length, "content");
    const end = offset + length + frameBytes;
    records.push({ step: stepOf(message, path, offset), bytes: file.subarray(offset, end) });
    offset = end;
  }
  return records;
}

/**
 * Cuts an event file to a step: events after it, and a record cut off at the end, go. The file is
 * written anew beside its name and renamed, or left alone where nothing goes.
 * @returns how many whole events went.
 * @throws FormatError when a sum does not match or a record is no event.
 */
export async function keepEvents(files: Files, path: string, step: number): Promise<number> {
  return (await cutEvents(files, path, step)).gone;
}

/** Seconds of a record that `start` made, whose time comes first; 0 for others. */
function wallTimeOf({ bytes }: EventRecord): number {
  if (bytes.length < 12 + 9 || bytes[12] !== 0x09) return 0;
  return new DataView(bytes.buffer, bytes.byteOffset).getFloat64(13, true);
}

/** As `keepEvents`; `latest` is the highest time of an event that stayed. */
async function cutEvents(
  files: Files,
  path: string,
  step: number,
): Promise<{ readonly gone: number; readonly latest: number }> {
  const file = await files.readBytes(path, maxFileBytes);
  const records = readRecords(file, path);
  const kept = records.filter((record) => record.step <= step);
  const bytes = kept.reduce((sum, record) => sum + record.bytes.length, 0);
  if (bytes < file.length) {
    const rest = new Uint8Array(bytes);
    let at = 0;
    for (const record of kept) {
      rest.set(record.bytes, at);
      at += record.bytes.length;
    }
    await files.writeBytes(path, rest);
  }
  const latest = kept.reduce((most, record) => Math.max(most, wallTimeOf(record) || 0), 0);
  return { gone: records.length - kept.length, latest };
}

const filePrefix = "events.out.tfevents.";

export interface EventWriterOptions {
  /** Seconds since the epoch, for the file's name and its first record. */
  readonly wallTime: number;
  /** The machine, as the file's name shows it; default "plasticity". */
  readonly machine?: string;
  /** The run goes on after this step: event files of the folder are cut to it. */
  readonly resumeStep?: number;
}

/** Writes one event file of a run: `add` keeps records in memory, `flush` appends them. */
export class EventWriter {
  readonly path: string;
  readonly #files: Files;
  #waiting: Uint8Array[];
  #latest: number;

  private constructor(files: Files, path: string, first: Uint8Array[], wallTime: number) {
    this.#files = files;
    this.path = path;
    this.#waiting = first;
    this.#latest = wallTime;
  }

  /**
   * A new file `events.out.tfevents.<seconds>.<machine>.<n>` in a folder, which is made where it is
   * not there. The file itself appears at the first `flush`.
   * @throws FormatError when a file that must be cut for `resumeStep` is damaged.
   */
  static async open(
    files: Files,
    folder: string,
    options: EventWriterOptions,
  ): Promise<EventWriter> {
    const { machine = "plasticity", resumeStep } = options;
    let { wallTime } = options;
    await files.makeDirectory(folder);
    if (resumeStep !== undefined) {
      for (const { path, isDirectory } of await files.list(folder)) {
        const name = path.slice(files.join(folder, "x").length - 1);
        if (isDirectory || !name.startsWith(filePrefix)) continue;
        wallTime = Math.max(wallTime, (await cutEvents(files, path, resumeStep)).latest);
      }
    }
    const first = [versionBytes(wallTime)];
    if (resumeStep !== undefined) first.push(sessionStartBytes(wallTime, resumeStep + 1));
    const seconds = String(Math.floor(wallTime)).padStart(10, "0");
    const safe = machine.replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 64);
    for (let n = 0; ; n++) {
      const path = files.join(folder, `${filePrefix}${seconds}.${safe}.${n}`);
      if (!(await files.info(path))) return new EventWriter(files, path, first, wallTime);
    }
  }

  /**
   * Keeps an event; one before the last, as of a clock that was set back, gets the last one's time.
   * @throws OptionError as `eventBytes` does; nothing is kept then.
   */
  add(event: RunEvent): void {
    const wallTime = Math.max(event.wallTime, this.#latest);
    this.#waiting.push(eventBytes({ ...event, wallTime }));
    this.#latest = wallTime;
  }

  /** Appends what waits. A run flushes before it writes a checkpoint, and at its end. */
  async flush(): Promise<void> {
    const records = this.#waiting;
    if (records.length === 0) return;
    const bytes = new Uint8Array(records.reduce((sum, record) => sum + record.length, 0));
    let at = 0;
    for (const record of records) {
      bytes.set(record, at);
      at += record.length;
    }
    await this.#files.append(this.path, bytes);
    // Only now: where the disk is full they wait for the next flush.
    this.#waiting = this.#waiting.slice(records.length);
  }
}
