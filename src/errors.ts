/**
 * Errors of this package. Form: `where: what is wrong, with the values — what to do.`
 *
 * Every error has a stable `code`, so that surfaces can map it without reading the sentence.
 */
export type ErrorCode =
  | "shape"
  | "dtype"
  | "option"
  | "format"
  | "unsupported"
  | "state"
  | "missing"
  | "internal";

export class PlasticityError extends Error {
  readonly code: ErrorCode;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: ErrorCode,
    message: string,
    details: Readonly<Record<string, unknown>> = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    this.details = details;
  }
}

type Details = Readonly<Record<string, unknown>>;

/** Sizes that do not fit together. */
export class ShapeError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("shape", message, details, options);
  }
}

/** A type of number that an operation does not take. */
export class DtypeError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("dtype", message, details, options);
  }
}

/** A setting outside its range, or unknown. */
export class OptionError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("option", message, details, options);
  }
}

/** A file that breaks its format; `details` names the file and, where known, the offset. */
export class FormatError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("format", message, details, options);
  }
}

/** Something this package, or this target, does not do. */
export class UnsupportedError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("unsupported", message, details, options);
  }
}

/** A call at the wrong moment: released, already running, not yet loaded. */
export class StateError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("state", message, details, options);
  }
}

/** A file, folder or tensor that is not there. */
export class MissingError extends PlasticityError {
  constructor(message: string, details?: Details, options?: ErrorOptions) {
    super("missing", message, details, options);
  }
}
