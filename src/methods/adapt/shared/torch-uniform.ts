/**
 * Uniform numbers as PyTorch's generator on a CPU gives them, for what files name by a seed alone.
 *
 * Matsumoto and Nishimura, "Mersenne Twister: A 623-dimensionally equidistributed uniform pseudorandom number
 * generator", ACM TOMACS 1998. Of each 32 bits the last 24 are a float.
 */

const size = 624;
const middle = 397;

/**
 * `torch.empty(count).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))`, as often as it is
 * called.
 * @param seed whole, of which 32 bits count
 */
export function torchUniform(
  seed: number,
): (count: number, bound: number) => Float32Array<ArrayBuffer> {
  const state = new Uint32Array(size);
  state[0] = seed >>> 0;
  for (let i = 1; i < size; i++) {
    const last = state[i - 1]! ^ (state[i - 1]! >>> 30);
    state[i] = Math.imul(1812433253, last) + i;
  }
  let at = size;
  const refill = (): void => {
    for (let i = 0; i < size; i++) {
      const y = (state[i]! & 0x80000000) | (state[(i + 1) % size]! & 0x7fffffff);
      state[i] = state[(i + middle) % size]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  };
  const next = (): number => {
    if (at === size) refill();
    let y = state[at++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return y ^ (y >>> 18);
  };
  return (count, bound) => {
    const [low, high] = [Math.fround(-bound), Math.fround(bound)];
    const width = Math.fround(high - low);
    return Float32Array.from({ length: count }, () => {
      const unit = (next() & 0xffffff) / 2 ** 24;
      // Rounded once, as processors that multiply and add in one go do; the array rounds.
      return unit * width + low;
    });
  };
}
