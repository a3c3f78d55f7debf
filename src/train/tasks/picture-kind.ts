/** The task that classes pictures. */
import {
  defaultPreprocessing,
  type Preprocessing,
  preprocessingJson,
  readPreprocessing,
} from "../../data/images.ts";
import { type PictureSplit, readPictures } from "../../data/picture-files.ts";
import { preparePictures } from "../../data/picture-set.ts";
import { OptionError } from "../../errors.ts";
import type { Files } from "../../host/host.ts";
import type { VisionModel } from "../../models/model.ts";
import { withLabels } from "../../models/picture-head.ts";
import type { Trainee } from "../program.ts";
import { imageClassification, scorePictures } from "./image-classification.ts";
import type { PictureTaskKind, TaskOptions } from "./task.ts";

/** Pictures of both sides, and the classes that are given or found. */
async function readBoth(files: Files, path: string, options: TaskOptions): Promise<PictureSplit> {
  const { map, heldOutPath, judgeOnly, share, limit } = options;
  const how = { ...(map && Object.keys(map).length > 0 && { map }) };
  if (!judgeOnly && heldOutPath === undefined) {
    return readPictures(files, path, {
      ...how,
      ...(share !== undefined && { share }),
      ...(limit !== undefined && { limit }),
    });
  }
  const all = await readPictures(files, path, { ...how, share: 0 });
  if (judgeOnly)
    return { ...all, train: [], heldOut: all.heldOut.length > 0 ? all.heldOut : all.train };
  const other = await readPictures(files, heldOutPath!, { ...how, share: 0 });
  const labels = [...new Set([...all.labels, ...other.labels])].sort();
  return {
    labels,
    train: [...all.train, ...all.heldOut],
    heldOut: [...other.train, ...other.heldOut],
  };
}

export const imageClassificationKind: PictureTaskKind = {
  name: "image-classification",
  about: "the class of a picture",
  data: "a folder of pictures with a folder for each class, or a file of records with path and label",
  reads: "pictures",
  async open(files, loaded, images, path, options) {
    const { folder } = options;
    if (loaded.model.kind !== "vision") {
      throw new OptionError(
        `image-classification: a ${loaded.model.family} sees no pictures — take a ViT or a ResNet.`,
      );
    }
    const given = loaded.model as VisionModel;
    if (options.judgeOnly && !given.head) {
      throw new OptionError(
        `image-classification: the ${given.family} has no head for it — fine-tune it with --task image-classification first.`,
      );
    }
    const found = await readBoth(files, path, options);
    const labels = options.judgeOnly ? given.head!.labels : (options.labels ?? found.labels);
    const { model, params } = withLabels(given, loaded.params, labels, options.rng);
    const rule: Preprocessing =
      (folder === undefined ? undefined : await readPreprocessing(files, folder)) ??
      defaultPreprocessing(model.family, model.sizes.imageSize);
    const objective = imageClassification(
      model,
      rule,
      options.labelSmoothing === undefined ? {} : { labelSmoothing: options.labelSmoothing },
    );
    const how = { augmentation: options.augmentation ?? {} } as const;
    const heldOut = await preparePictures(files, images, found.heldOut, labels, rule, how);
    const train = options.judgeOnly
      ? heldOut
      : await preparePictures(files, images, found.train, labels, rule, how);
    const skipped = [...new Set([...train.skipped, ...heldOut.skipped])];
    return {
      model,
      params,
      modules: model.head!.modules,
      taskType: undefined,
      objective,
      train: train.set,
      heldOut: heldOut.set,
      cut: 0,
      about: `${labels.length} classes (${labels.slice(0, 6).join(", ")}${labels.length > 6 ? ", …" : ""})${skipped.length > 0 ? `; ${skipped.length} pictures left out, as ${skipped[0]!.reason}` : ""}`,
      files: {
        "preprocessor_config.json": `${JSON.stringify(preprocessingJson(rule), null, 2)}\n`,
      },
      measure: async (trainee, backend, measuring = {}) => {
        const { accuracy, top5, macroF1, loss } = await scorePictures(
          trainee as Trainee<VisionModel>,
          heldOut.set,
          backend,
          measuring,
        );
        return { accuracy, ...(labels.length > 5 && { top5 }), macroF1, loss };
      },
    };
  },
};
