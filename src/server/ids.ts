/** Names for things that are made here. */
const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/** A prefix and 24 random letters and digits. */
export function newId(prefix: string): string {
  const bytes = crypto.getRandomValues(new Uint8Array(48));
  let id = "";
  // Bytes beyond the last multiple of 62 would favour some letters.
  for (const byte of bytes) if (byte < 248 && id.length < 24) id += letters[byte % 62]!;
  return prefix + id;
}

/** A seed for a request that names none. */
export function newSeed(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high! & 0xfffff) * 2 ** 32 + low!;
}
