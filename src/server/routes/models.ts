/** `/v1/models`: the base and its adapters. */
import type { DeletedBody, ListBody, ModelBody } from "../api-types.ts";
import { unknownModel, wrong } from "../errors.ts";
import type { Routes } from "../service.ts";

export const modelRoutes: Routes = (app, { adapters, embedName, jobs }) => {
  const all = (): readonly ModelBody[] => [
    ...adapters.models,
    ...(embedName === undefined
      ? []
      : [
          {
            id: embedName,
            object: "model" as const,
            created: adapters.created,
            owned_by: "plasticity",
          },
        ]),
  ];

  app.get("/v1/models", (call) => {
    const body: ListBody<ModelBody> = { object: "list", data: all() };
    return call.json(body);
  });

  app.get("/v1/models/:model", (call) => {
    const name = call.req.param("model");
    const own = adapters.get(name)?.name;
    const found = all().find(
      ({ id }) => id === name || (own !== undefined && id === `${adapters.base}:${own}`),
    );
    if (!found) throw unknownModel(name);
    return call.json(found);
  });

  app.delete("/v1/models/:model", async (call) => {
    const name = call.req.param("model");
    if (name === adapters.base || name === embedName) {
      throw wrong(`The model '${name}' is the server's own and stays.`, "model");
    }
    const own = adapters.get(name)?.name;
    if (own === undefined || !(await adapters.unload(own))) throw unknownModel(name);
    await jobs?.forget(own);
    const body: DeletedBody = { id: name, object: "model", deleted: true };
    return call.json(body);
  });
};
