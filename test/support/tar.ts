/** Tar archives as tests need them: good ones and bad ones. */

export interface TarEntry {
  readonly name: string;
  readonly text?: string;
  readonly type?: string;
  readonly prefix?: string;
}

/** A ustar archive; two empty blocks end it. */
export function tar(entries: readonly TarEntry[]): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (const { name, text = "", type = "0", prefix = "" } of entries) {
    const header = new Uint8Array(512);
    const put = (at: number, value: string): void =>
      header.set(new TextEncoder().encode(value), at);
    const data = new TextEncoder().encode(text);
    put(0, name);
    put(100, "0000644\0");
    put(124, `${data.length.toString(8).padStart(11, "0")}\0`);
    put(148, "        ");
    put(156, type);
    put(257, "ustar\x0000");
    put(345, prefix);
    put(
      148,
      `${header
        .reduce((a, b) => a + b, 0)
        .toString(8)
        .padStart(6, "0")}\0 `,
    );
    const body = new Uint8Array(Math.ceil(data.length / 512) * 512);
    body.set(data);
    blocks.push(header, body);
  }
  blocks.push(new Uint8Array(1024));
  return Uint8Array.from(blocks.flatMap((block) => [...block]));
}
