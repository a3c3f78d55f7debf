import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { normal } from "./init.ts";
import { type Context, type Initializer, Module, type Slot } from "./module.ts";

/** Rows of a table by index: (…) int32 → (…, features). Parameter: weight (count, features). */
export class Embedding extends Module {
  readonly count: number;
  readonly features: number;
  readonly weight: Slot;

  constructor(count: number, features: number, options: { readonly init?: Initializer } = {}) {
    super();
    this.count = count;
    this.features = features;
    this.weight = this.parameter("weight", [count, features], options.init ?? normal(1));
  }

  forward(context: Context, indices: Value): Value {
    return context.site(this, indices, gather(context.get(this.weight), indices));
  }
}
