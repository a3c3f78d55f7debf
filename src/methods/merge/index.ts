/** Every method that merges, and the engine that runs them. */

import { breadcrumbs } from "./breadcrumbs.ts";
import { breadcrumbsTies } from "./breadcrumbs-ties.ts";
import { dareLinear } from "./dare-linear.ts";
import { dareTies } from "./dare-ties.ts";
import { della } from "./della.ts";
import { dellaLinear } from "./della-linear.ts";
import { linear } from "./linear.ts";
import { modelStock } from "./model-stock.ts";
import type { MergeMethod } from "./shared/role.ts";
import { slerp } from "./slerp.ts";
import { taskArithmetic } from "./task-arithmetic.ts";
import { ties } from "./ties.ts";

export { type MergeConfig, readMergeConfig } from "./shared/config.ts";
export {
  type MergedReport,
  type MergeProgress,
  type OpenedMerge,
  openMerge,
  type ResolveModel,
  type RunMergeOptions,
  resolveFolders,
} from "./shared/engine.ts";
export {
  type Breadcrumb,
  type BreadcrumbOptions,
  BreadcrumbPool,
  breadcrumb,
  mergeBreadcrumbs,
} from "./shared/pool.ts";

/** Sorted by id. */
export const mergeMethods: readonly MergeMethod[] = [
  breadcrumbs,
  breadcrumbsTies,
  dareLinear,
  dareTies,
  della,
  dellaLinear,
  linear,
  modelStock,
  slerp,
  taskArithmetic,
  ties,
];
