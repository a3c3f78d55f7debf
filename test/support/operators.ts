/**
 * Cases for every operator, on awkward shapes and types: what each backend must do as the reference
 * does.
 */
import type { OpName } from "../../src/ir/attrs.ts";
import type { Cases } from "./operators/case.ts";
import { controlCases } from "./operators/control.ts";
import { elementwiseCases } from "./operators/elementwise.ts";
import { fusedCases } from "./operators/fused.ts";
import { imageCases } from "./operators/image.ts";
import { indexingCases } from "./operators/indexing.ts";
import { layoutCases } from "./operators/layout.ts";
import { linearCases } from "./operators/linear.ts";
import { recurrenceCases } from "./operators/recurrence.ts";
import { reduceCases } from "./operators/reduce.ts";

export const operatorCases: Cases<OpName> = {
  ...elementwiseCases,
  ...reduceCases,
  ...layoutCases,
  ...indexingCases,
  ...linearCases,
  ...controlCases,
  ...fusedCases,
  ...imageCases,
  ...recurrenceCases,
};
