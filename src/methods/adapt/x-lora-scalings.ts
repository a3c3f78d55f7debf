/** What is told of X-LoRA's mixtures: scalings of a text, and how many experts they stand for. */
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import type { Backend } from "../../backend/backend.ts";
import { compile } from "../../backend/compile.ts";
import type { Value } from "../../ir/graph.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { TensorRecord, ValueRecord } from "../../nn/module.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { XLoraAdapter } from "./x-lora.ts";

/**
 * How a text is mixed: λ of each token, layer and expert.
 * @param ids (S,)
 * @returns (S, layers, experts); layers are those of `targets`, experts those of `experts`
 */
export async function tokenScalings(
  backend: Backend,
  model: LanguageModel,
  base: TensorRecord,
  loaded: LoadedAdapter & { readonly adapter: XLoraAdapter },
  ids: Tensor<"int32">,
): Promise<Tensor> {
  const own = { ...loaded.params, ...loaded.buffers };
  const row = ids.reshape([1, ids.size]);
  const compiled = await compile<Tensor>(
    ((values: ValueRecord, weights: ValueRecord, tokens: Value) => {
      const context = model.context(weights, {}, loaded.adapter.context(values));
      return loaded.adapter.scalings(values, context, tokens);
    }) as never,
    [own, base, row],
    { backend },
  );
  try {
    return await compiled.run(own, base, row);
  } finally {
    await compiled.release();
  }
}

/**
 * Effective number of experts of each token and layer: exp of the entropy of |λ| / Σ|λ|, 1 to experts; 0 where
 * none counts.
 * @param scalings (S, layers, experts)
 * @returns by token, then by layer
 */
export function effectiveExperts(scalings: Tensor): number[][] {
  const [tokens, layers, experts] = scalings.shape as readonly [number, number, number];
  const numbers = scalings.numbers();
  return Array.from({ length: tokens }, (_, token) =>
    Array.from({ length: layers }, (_, layer) => {
      const at = (token * layers + layer) * experts;
      const sizes = Array.from({ length: experts }, (_, i) => Math.abs(numbers[at + i]!));
      const total = sizes.reduce((all, one) => all + one, 0);
      if (total === 0) return 0;
      const entropy = sizes.reduce((all, one) => {
        const share = one / total;
        return share > 0 ? all - share * Math.log(share) : all;
      }, 0);
      return Math.exp(entropy);
    }),
  );
}
