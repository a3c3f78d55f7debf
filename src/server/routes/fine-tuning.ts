/** `/v1/fine_tuning/jobs`: the main job of this package, run beside the server; its adapter is then served. */

import { StateError } from "../../index.ts";
import type { JsonObject, JsonValue } from "../../io/json.ts";
import type { HyperparametersBody, PageBody } from "../api-types.ts";
import { readJson } from "../body.ts";
import { ApiError, notFound, wrong } from "../errors.ts";
import {
  either,
  type Field,
  type FieldValues,
  ignored,
  list,
  need,
  nested,
  number,
  object,
  oneOf,
  readFields,
  text,
  whole,
} from "../fields.ts";
import { newSeed } from "../ids.ts";
import { type JobRecord, type JobStore, jobBody } from "../job-store.ts";
import { pageOf } from "../paging.ts";
import { type Call, type Routes, type Service, targetOf } from "../service.ts";

const maxEpochs = 50;

const isWord = (value: JsonValue): boolean => typeof value === "string";

/** A number, or "auto". */
const auto = (own: Field<number>): Field<number | "auto"> => either(isWord, oneOf("auto"), own);

const hyperparameters = {
  n_epochs: auto(whole(1, maxEpochs)),
  batch_size: auto(whole(1, 256)),
  learning_rate_multiplier: auto(number(1e-4, 100)),
} as const;

const metadata: Field<Readonly<Record<string, string>>> = {
  read: (value, param) => {
    const entries = Object.entries(object.read(value, param));
    if (entries.length > 16) throw wrong(`Invalid '${param}': at most 16 pairs are taken.`, param);
    return Object.fromEntries(
      entries.map(([key, own]) => [
        text(64, 1).read(key, param),
        text(512).read(own, `${param}.${key.slice(0, 64)}`),
      ]),
    );
  },
};

const suffix: Field<string> = {
  read: (value, param) => {
    const own = text(64, 1).read(value, param);
    if (/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(own) && !own.includes("..")) return own;
    throw wrong(
      `Invalid '${param}': expected letters, digits, ".", "_" and "-", the first a letter or digit.`,
      param,
    );
  },
};

const fields = {
  model: need(text(256, 1)),
  training_file: need(text(64, 1)),
  validation_file: text(64, 1),
  suffix,
  seed: whole(0, 2 ** 31 - 1),
  hyperparameters: nested(hyperparameters),
  method: nested({
    type: need(oneOf("supervised", "dpo")),
    supervised: nested({ hyperparameters: nested(hyperparameters) }),
    dpo: nested({
      hyperparameters: nested({ ...hyperparameters, beta: auto(number(0.001, 10)) }),
    }),
  }),
  metadata,
  integrations: list(ignored, 0),
} as const;

/** @throws ApiError 501 where nothing is kept. */
function storeOf({ jobs }: Service): JobStore {
  if (jobs) return jobs;
  throw new ApiError(501, "This server runs no jobs: it was started without --data-folder.", {
    code: "not_available",
  });
}

function jobOf(call: Call, service: Service): JobRecord {
  const id = call.req.param("id") ?? "";
  const job = storeOf(service).get(id);
  if (job) return job;
  throw notFound(`Could not find fine tune: ${id.slice(0, 64)}`, "fine_tuning_job_id");
}

async function create(call: Call, service: Service): Promise<Response> {
  const { limits, files } = service;
  const store = storeOf(service);
  const own = readFields(await readJson(call.req.raw, limits.bodyBytes, limits.bodyMs), fields);
  const { adapter } = targetOf(service, own.model);
  if (adapter !== undefined) {
    throw wrong("An adapter is not fine-tuned further: name the base model.", "model");
  }
  for (const param of ["training_file", "validation_file"] as const) {
    const id = own[param];
    if (id !== undefined && !files?.get(id)) {
      throw wrong(`File '${id}' does not exist: upload it first.`, param, "invalid_file");
    }
  }
  const type = own.method?.type ?? "supervised";
  const given: Partial<HyperparametersBody> | FieldValues<typeof hyperparameters> =
    own.method?.[type]?.hyperparameters ?? own.hyperparameters ?? {};
  const parameters: HyperparametersBody = {
    n_epochs: given.n_epochs ?? "auto",
    batch_size: given.batch_size ?? "auto",
    learning_rate_multiplier: given.learning_rate_multiplier ?? "auto",
  };
  const beta = own.method?.dpo?.hyperparameters?.beta;
  const method = {
    type,
    [type]: { hyperparameters: { ...parameters, ...(type === "dpo" && { beta: beta ?? "auto" }) } },
  } as unknown as JsonObject;
  try {
    const job = await store.create({
      model: own.model,
      suffix: own.suffix,
      trainingFile: own.training_file,
      validationFile: own.validation_file,
      hyperparameters: parameters,
      method,
      beta: type === "dpo" ? (typeof beta === "number" ? beta : 0.1) : undefined,
      seed: own.seed ?? newSeed() % 2 ** 31,
      metadata: own.metadata,
    });
    return call.json(jobBody(job));
  } catch (error) {
    if (!(error instanceof StateError)) throw error;
    throw new ApiError(429, error.message, {
      type: "rate_limit_error",
      code: "rate_limit_exceeded",
    });
  }
}

export const fineTuningRoutes: Routes = (app, service) => {
  app.post("/v1/fine_tuning/jobs", (call) => create(call, service));

  app.get("/v1/fine_tuning/jobs", (call) => {
    const newest = [...storeOf(service).list].reverse().map(jobBody);
    return call.json(pageOf(call, newest, 20, 100));
  });

  app.get("/v1/fine_tuning/jobs/:id", (call) => call.json(jobBody(jobOf(call, service))));

  app.get("/v1/fine_tuning/jobs/:id/events", async (call) => {
    const { id } = jobOf(call, service);
    return call.json(pageOf(call, await storeOf(service).events(id), 20, 1000));
  });

  app.get("/v1/fine_tuning/jobs/:id/checkpoints", (call) => {
    jobOf(call, service);
    // A run keeps checkpoints to go on from, which are no models.
    const body: PageBody<never> = {
      object: "list",
      data: [],
      first_id: null,
      last_id: null,
      has_more: false,
    };
    return call.json(body);
  });

  app.post("/v1/fine_tuning/jobs/:id/cancel", async (call) => {
    const { id } = jobOf(call, service);
    try {
      return call.json(jobBody(await storeOf(service).cancel(id)));
    } catch (error) {
      if (!(error instanceof StateError)) throw error;
      throw wrong(error.message, "fine_tuning_job_id");
    }
  });
};
