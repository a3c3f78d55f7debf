/** Factors cut down to the ranks that a mask keeps, and put back with zeros between. */
import { Tensor } from "../../../tensor/tensor.ts";

/** The rows that a mask keeps. */
export function rowsKept(tensor: Tensor, mask: readonly boolean[]): Tensor {
  const [rows, columns] = tensor.shape as [number, number];
  const numbers = tensor.to("float32").data;
  const kept = Array.from({ length: rows }, (_, i) => i).filter((i) => mask[i]);
  const result = new Float32Array(kept.length * columns);
  for (const [to, from] of kept.entries()) {
    result.set(numbers.subarray(from * columns, (from + 1) * columns), to * columns);
  }
  return new Tensor("float32", [kept.length, columns], result);
}

/** Rows put back where the mask has them, zeros between. */
export function rowsSpread(tensor: Tensor, mask: readonly boolean[]): Tensor {
  const columns = tensor.shape[1]!;
  const numbers = tensor.to("float32").data;
  const result = new Float32Array(mask.length * columns);
  let from = 0;
  for (const [to, isKept] of mask.entries()) {
    if (!isKept) continue;
    result.set(numbers.subarray(from * columns, (from + 1) * columns), to * columns);
    from++;
  }
  return new Tensor("float32", [mask.length, columns], result);
}

function turned(tensor: Tensor): Tensor {
  const [rows, columns] = tensor.shape as [number, number];
  const numbers = tensor.numbers();
  const result = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) result[j * rows + i] = numbers[i * columns + j]!;
  }
  return new Tensor("float32", [columns, rows], result);
}

export function columnsKept(tensor: Tensor, mask: readonly boolean[]): Tensor {
  return turned(rowsKept(turned(tensor), mask));
}

export function columnsSpread(tensor: Tensor, mask: readonly boolean[]): Tensor {
  return turned(rowsSpread(turned(tensor), mask));
}
