/** Every data set by name, for the command line. */
import { brownInfo } from "./brown.ts";
import type { DataSetInfo } from "./data-set.ts";
import { digitsInfo } from "./digits.ts";
import { fashionMnistInfo } from "./fashion-mnist.ts";
import { glyphsInfo } from "./glyphs.ts";
import { hersheyInfo } from "./hersheytext.ts";
import { mnistFullInfo, mnistInfo } from "./mnist.ts";
import { shapesInfo } from "./shapes.ts";

export const dataSets: readonly DataSetInfo[] = [
  brownInfo,
  digitsInfo,
  fashionMnistInfo,
  glyphsInfo,
  hersheyInfo,
  mnistInfo,
  mnistFullInfo,
  shapesInfo,
];
