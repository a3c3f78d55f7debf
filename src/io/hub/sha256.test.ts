import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { gitBlobId, Sha256 } from "./sha256.ts";

const bytes = Uint8Array.from({ length: 3000 }, (_, i) => (i * 31 + (i >> 3)) & 255);

it("gives the digest of FIPS 180's example", () => {
  const hash = new Sha256();
  hash.update(new TextEncoder().encode("abc"));
  expect(hash.hex()).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
});

it("agrees with Node at every length around a block, whole and in parts", () => {
  for (let length = 0; length < 200; length++) {
    const text = bytes.subarray(0, length);
    const expected = createHash("sha256").update(text).digest("hex");
    const [whole, parts] = [new Sha256(), new Sha256()];
    whole.update(text);
    for (let at = 0; at < length; at += 7)
      parts.update(text.subarray(at, Math.min(length, at + 7)));
    expect([whole.hex(), parts.hex()]).toEqual([expected, expected]);
  }
});

it("names a file as git does", async () => {
  // printf 'hello\n' | git hash-object --stdin
  const id = await gitBlobId(new TextEncoder().encode("hello\n"));
  expect(id).toBe("ce013625030ba8dba906f756967f9e9ca394464a");
});
