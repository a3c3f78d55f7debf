/**
 * Letters in Hershey's vector fonts (A. V. Hershey, 1967; in the public domain) from npm `hersheytext`, drawn
 * with random affine changes: 26 classes.
 */
import { FormatError } from "../../errors.ts";
import { isJsonObject, parseJson } from "../../io/json.ts";
import { Rng } from "../../tensor/rng.ts";
import type { ExperimentContext } from "../experiment.ts";
import { type DataSetInfo, openPackage, readFile } from "./data-set.ts";
import type { Stroke } from "./draw.ts";
import { drawGlyphs, type ImageData, quickImages } from "./glyphs.ts";
import { imageSet, joinImages, takeImages } from "./image-set.ts";

export const hersheyInfo: DataSetInfo = {
  name: "hersheytext",
  about: "letters A to Z in Hershey's vector fonts, drawn at 28 × 28",
  licence: "fonts: free use with acknowledgement of A. V. Hershey; package: MIT",
  bytes: 500_000,
  request: {
    registry: "npm",
    name: "hersheytext",
    version: "2.0.0",
    integrity:
      "sha512-t8UPIWKpPKffT7QcGG8AWXen4zVpfMdlO5uq3cE8aNQGFxSEV/HoGAIFki6lioNi35WG73gaeW4VY3avxsJIrA==",
    keep: (path) => path === "hersheytext.min.json" || path === "LICENSE",
  },
};

export const letterNames: readonly string[] = Array.from({ length: 26 }, (_, i) =>
  String.fromCharCode(65 + i),
);

/** Fonts whose characters are letters of the Latin alphabet in ASCII's order. */
const fonts = ["futural", "futuram", "timesr", "timesi", "scripts", "timesib", "timesrb"] as const;

/** Strokes of a path of "M x,y L x,y x,y …", in the unit square. */
function strokesOf(d: string, where: string): Stroke[] {
  const strokes: number[][] = [];
  for (const [, letter, x, y] of d.matchAll(/([ML])?\s*(-?\d+(?:\.\d+)?),(-?\d+(?:\.\d+)?)/g)) {
    if (letter === "M") strokes.push([]);
    strokes.at(-1)?.push(Number(x), Number(y));
  }
  const all = strokes.flat();
  if (all.length < 4) throw new FormatError(`${where}: has no strokes.`);
  const xs = all.filter((_, i) => i % 2 === 0);
  const ys = all.filter((_, i) => i % 2 === 1);
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const span = Math.max(Math.max(...xs) - left, Math.max(...ys) - top, 1e-6);
  const [dx, dy] = [(span - (Math.max(...xs) - left)) / 2, (span - (Math.max(...ys) - top)) / 2];
  return strokes.map((points) =>
    points.map((v, i) => (i % 2 === 0 ? (v - left + dx) / span : (v - top + dy) / span)),
  );
}

/** Letters in several fonts, classes in turn; made-up symbols under the quick budget. */
export async function loadHershey(
  context: ExperimentContext,
  { train = 5200, test = 2600 }: { readonly train?: number; readonly test?: number } = {},
): Promise<ImageData> {
  if (context.budget === "quick") return quickImages(context, "hersheytext", letterNames, 1003);
  const found = await openPackage(context, hersheyInfo);
  const json = parseJson(await readFile(context, found, "hersheytext.min.json"), found.source);
  const alphabets = fonts.map((font) => {
    const entry = isJsonObject(json) ? json[font] : undefined;
    const chars = isJsonObject(entry) ? entry["chars"] : undefined;
    return letterNames.map((letter) => {
      // The list begins at "!".
      const glyph = Array.isArray(chars) ? chars[letter.charCodeAt(0) - 33] : undefined;
      const where = `${found.source}: letter ${letter} of ${font}`;
      if (!isJsonObject(glyph) || typeof glyph["d"] !== "string") {
        throw new FormatError(`${where} is not there.`);
      }
      return strokesOf(glyph["d"], where);
    });
  });
  const rng = new Rng(26).fold("hershey");
  const draw = (count: number, name: string) => {
    const each = Math.ceil(count / alphabets.length / 26) * 26;
    const parts = alphabets.map((glyphs, font) =>
      drawGlyphs(glyphs, each, 28, rng.fold(name, font), { classes: letterNames }),
    );
    const all = joinImages(parts);
    return imageSet(
      takeImages(all, rng.fold(name, "order").permutation(all.count).subarray(0, count)),
    );
  };
  const record = {
    name: "hersheytext",
    source: found.source,
    checksum: `${hersheyInfo.request!.integrity!} ${train}+${test}`,
    licence: hersheyInfo.licence,
  };
  context.recordData(record);
  return { train: draw(train, "train"), test: draw(test, "test"), record };
}
