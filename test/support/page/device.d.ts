import type * as Library from "../../../src/index.ts";

export interface DeviceRun {
  readonly losses: readonly number[];
  readonly norms: readonly number[];
  /** Bytes per step. */
  readonly crossings: readonly ({ readonly up: number; readonly down: number } | undefined)[];
  /** Of an evaluation after five steps. */
  readonly loss: number;
  readonly params: readonly (readonly number[])[];
  readonly state: readonly (readonly number[])[];
  readonly steps: number;
  /** Whether the step with an infinite weight was applied. */
  readonly isApplied: boolean;
  /** Whether it left the parameters. */
  readonly isKept: boolean;
  readonly start: Library.DeviceStats | undefined;
  readonly held: Library.DeviceStats | undefined;
  readonly end: Library.DeviceStats | undefined;
}

export interface DeviceRules {
  readonly numbers: readonly (readonly number[])[];
  readonly results: readonly unknown[];
  readonly refusals: readonly string[];
  readonly held: readonly number[];
  readonly left: readonly number[];
}

export interface DeviceDecoding {
  readonly made: readonly (readonly number[])[];
  /** Tensors on the device while the decoder is there, and after it. */
  readonly held: number | undefined;
  readonly left: number | undefined;
}

export function decodeOnDevice(
  library: typeof Library,
  backend: Library.Backend,
): Promise<DeviceDecoding>;

export function trainOnDevice(
  library: typeof Library,
  backend: Library.Backend,
  options: { readonly isFull: boolean },
): Promise<DeviceRun>;

export function deviceRules(
  library: typeof Library,
  backend: Library.Backend,
): Promise<DeviceRules>;
