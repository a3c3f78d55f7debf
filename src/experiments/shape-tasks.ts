/** Small tasks on pictures drawn by code, each with its own question: how many, which way, where. */
import type { Rng } from "../tensor/rng.ts";
import type { ImageSet } from "./data/image-set.ts";
import {
  type Colour,
  type Drawn,
  drawScenes,
  randomColour,
  randomThing,
  shapeNames,
  textureNames,
} from "./data/shapes.ts";

const size = 32;

function pick<T>(list: readonly T[], rng: Rng): T {
  return list[rng.integer(list.length)]!;
}

/** Things that do not touch, one in each of some of nine cells. */
function scattered(count: number, rng: Rng, backdrop: Colour): Drawn[] {
  const cells = rng.permutation(9).subarray(0, count);
  return Array.from(cells, (cell) => ({
    shape: pick(shapeNames, rng),
    texture: pick(textureNames, rng),
    radius: 3.5 + rng.uniform(),
    x: (size / 3) * ((cell % 3) + 0.5),
    y: (size / 3) * (Math.floor(cell / 3) + 0.5),
    angle: 2 * Math.PI * rng.uniform(),
    colour: randomColour(rng, backdrop),
  }));
}

export type ShapeTask = "counting" | "orientation" | "position";

const questions: Readonly<
  Record<
    ShapeTask,
    {
      readonly classes: readonly string[];
      things(label: number, rng: Rng, backdrop: Colour): readonly Drawn[];
    }
  >
> = {
  counting: {
    classes: ["1", "2", "3", "4", "5", "6"],
    things: (label, rng, backdrop) => scattered(label + 1, rng, backdrop),
  },
  orientation: {
    classes: Array.from({ length: 8 }, (_, i) => `${45 * i} degrees`),
    things: (label, rng, backdrop) => {
      const thing = randomThing("triangle", pick(textureNames, rng), rng, backdrop);
      return [{ ...thing, angle: (Math.PI / 4) * (label + 0.6 * (rng.uniform() - 0.5)) }];
    },
  },
  position: {
    classes: ["left", "right", "above", "below"],
    things: (label, rng, backdrop) => {
      const [near, far, across] = [8, size - 8, 8 + 16 * rng.uniform()];
      const first = label % 2 === 0 ? near : far;
      const at = (along: number): Pick<Drawn, "x" | "y"> =>
        label < 2 ? { x: along, y: across } : { x: across, y: along };
      const thing = (shape: "circle" | "cross", along: number): Drawn => ({
        shape,
        texture: pick(textureNames, rng),
        radius: 5 + rng.uniform(),
        angle: 0,
        colour: randomColour(rng, backdrop),
        ...at(along),
      });
      return [thing("circle", first), thing("cross", near + far - first)];
    },
  },
};

/** Pictures of a task, classes in turn. */
export function drawTask(task: ShapeTask, count: number, rng: Rng): ImageSet {
  const { classes, things } = questions[task];
  return drawScenes(count, classes, rng, (i, own, backdrop) => {
    const label = i % classes.length;
    return { label, things: things(label, own, backdrop) };
  });
}
