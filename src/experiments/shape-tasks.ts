/**
 * Small tasks on pictures drawn by code, each with its own question: what, how many, which way, where. Things are
 * bright on a dark ground, so that a small transformer learns the first question within minutes.
 */
import { Rng } from "../tensor/rng.ts";
import { type ImageData, madeUp } from "./data/glyphs.ts";
import { type ImageSet, imageSet } from "./data/image-set.ts";
import {
  background,
  type Colour,
  type Drawn,
  drawShape,
  shapeNames,
  textureNames,
} from "./data/shapes.ts";
import type { ExperimentContext } from "./experiment.ts";

const size = 32;

function pick<T>(list: readonly T[], rng: Rng): T {
  return list[rng.integer(list.length)]!;
}

const bright = (rng: Rng): Colour => [
  0.6 + 0.4 * rng.uniform(),
  0.6 + 0.4 * rng.uniform(),
  0.6 + 0.4 * rng.uniform(),
];

/** One thing near the middle, a little turned. */
function one(shape: Drawn["shape"], texture: Drawn["texture"], angle: number, rng: Rng): Drawn {
  const radius = 9 + 4 * rng.uniform();
  const place = (): number => radius + (size - 2 * radius) * rng.uniform();
  return { shape, texture, angle, radius, x: place(), y: place(), colour: bright(rng) };
}

/** Things that do not touch, one in each of some of nine cells. */
function scattered(count: number, rng: Rng): Drawn[] {
  return Array.from(rng.permutation(9).subarray(0, count), (cell) => ({
    shape: pick(shapeNames, rng),
    texture: pick(textureNames, rng),
    radius: 3.5 + rng.uniform(),
    x: (size / 3) * ((cell % 3) + 0.5),
    y: (size / 3) * (Math.floor(cell / 3) + 0.5),
    angle: 2 * Math.PI * rng.uniform(),
    colour: bright(rng),
  }));
}

export type ShapeTask = "what" | "counting" | "orientation" | "position";

const questions: Readonly<
  Record<
    ShapeTask,
    {
      readonly classes: readonly string[];
      things(label: number, rng: Rng): readonly Drawn[];
    }
  >
> = {
  what: {
    classes: shapeNames.flatMap((shape) => textureNames.map((texture) => `${texture} ${shape}`)),
    things: (label, rng) => {
      const angle = 0.6 * (rng.uniform() - 0.5);
      return [one(shapeNames[Math.floor(label / 4)]!, textureNames[label % 4]!, angle, rng)];
    },
  },
  counting: {
    classes: ["1", "2", "3", "4", "5", "6"],
    things: (label, rng) => scattered(label + 1, rng),
  },
  orientation: {
    classes: Array.from({ length: 8 }, (_, i) => `${45 * i} degrees`),
    things: (label, rng) => {
      const angle = (Math.PI / 4) * (label + 0.6 * (rng.uniform() - 0.5));
      return [one("crescent", pick(textureNames, rng), angle, rng)];
    },
  },
  position: {
    classes: ["left", "right", "above", "below"],
    things: (label, rng) => {
      const [near, far, across] = [8, size - 8, 8 + 16 * rng.uniform()];
      const first = label % 2 === 0 ? near : far;
      const at = (along: number): Pick<Drawn, "x" | "y"> =>
        label < 2 ? { x: along, y: across } : { x: across, y: along };
      const thing = (shape: "circle" | "cross", along: number): Drawn => ({
        shape,
        texture: pick(textureNames, rng),
        radius: 5 + rng.uniform(),
        angle: 0,
        colour: bright(rng),
        ...at(along),
      });
      return [thing("circle", first), thing("cross", near + far - first)];
    },
  },
};

/** Pictures of a task, classes in turn. */
export function drawTask(task: ShapeTask, count: number, rng: Rng): ImageSet {
  const { classes, things } = questions[task];
  const length = 3 * size * size;
  const pixels = new Float32Array(count * length);
  const labels = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    const own = rng.fold(i);
    const picture = pixels.subarray(i * length, (i + 1) * length);
    const ground: Colour = [0.25 * own.uniform(), 0.25 * own.uniform(), 0.25 * own.uniform()];
    background(picture, size, ground, own);
    labels[i] = i % classes.length;
    for (const thing of things(labels[i]!, own)) drawShape(picture, size, thing);
  }
  return imageSet({ pixels, labels, channels: 3, height: size, width: size, classes });
}

/** What the base learns: shape and texture of one thing, 32 classes. */
export function loadBrightShapes(
  context: ExperimentContext,
  sizes: { readonly train: number; readonly test: number },
): ImageData {
  const record = madeUp("bright-shapes", { ...sizes, version: 1 });
  context.recordData(record);
  const rng = new Rng(0).fold("bright shapes");
  return {
    train: drawTask("what", sizes.train, rng.fold("train")),
    test: drawTask("what", sizes.test, rng.fold("test")),
    record,
  };
}
