import { type Context, Module } from "./module.ts";

/** A whole model: one forward pass, around which an adapter may stand (`ContextOptions.around`). */
export abstract class Network<I, O extends object, R> extends Module {
  /** The pass as callers run it. */
  forward(context: Context, input: I, options?: O): R {
    const given = options ?? ({} as O);
    const { around } = context.options;
    if (!around) return this.pass(context, input, given);
    return around((inner, i: I, o: O) => this.pass(inner, i, o), context, input, given);
  }

  /** The model's own pass. */
  protected abstract pass(context: Context, input: I, options: O): R;
}
