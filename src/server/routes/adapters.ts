/** `/v1/adapters`: load, unload and list adapters while the server runs. Beyond the OpenAI interface. */
import { StateError } from "../../index.ts";
import type { ServedAdapter } from "../adapter-table.ts";
import type { AdapterBody, DeletedBody, ListBody } from "../api-types.ts";
import { readJson } from "../body.ts";
import { ApiError, notFound, UnavailableError } from "../errors.ts";
import { need, readFields, text } from "../fields.ts";
import { type Routes, seconds } from "../service.ts";

const fields = { name: need(text(128, 1)), source: text(256, 1) } as const;

export const adapterRoutes: Routes = (app, service) => {
  const { adapters, engine, limits } = service;
  const bodyOf = (
    { name, created, source }: ServedAdapter,
    users: ReadonlyMap<string, number>,
  ): AdapterBody => ({
    id: name,
    object: "adapter",
    base: adapters.base,
    created,
    source,
    users: users.get(name) ?? 0,
  });
  const usersNow = async (): Promise<ReadonlyMap<string, number>> => {
    const { adapters: held } = await engine.stats();
    return new Map(held.map(({ name, users }) => [name, users]));
  };

  app.get("/v1/adapters", async (call) => {
    const users = await usersNow();
    const body: ListBody<AdapterBody> = {
      object: "list",
      data: adapters.list.map((adapter) => bodyOf(adapter, users)),
    };
    return call.json(body);
  });

  app.get("/v1/adapters/:name", async (call) => {
    const name = call.req.param("name");
    const found = adapters.get(name);
    if (!found) throw notFound(`There is no adapter '${name.slice(0, 128)}'.`, "name");
    return call.json(bodyOf(found, await usersNow()));
  });

  app.post("/v1/adapters", async (call) => {
    const own = readFields(await readJson(call.req.raw, limits.bodyBytes, limits.bodyMs), fields);
    const { name, source = name } = own;
    const folder = source.startsWith("ftjob-")
      ? await service.jobs?.adapterFolder(source)
      : await service.adapterFolder?.(source);
    if (folder === undefined) {
      throw new ApiError(
        400,
        "This server loads no adapters from folders: it was started without --adapters.",
        { param: "source", code: "unsupported_value" },
      );
    }
    const adapter = { name, folder, source, created: seconds(service.now()) };
    try {
      await adapters.load(adapter);
    } catch (error) {
      if (!(error instanceof StateError) || error instanceof UnavailableError) throw error;
      // All slots are taken: something is to be unloaded first.
      throw new ApiError(409, error.message, { code: "conflict" });
    }
    return call.json(bodyOf(adapter, new Map()), 201);
  });

  app.delete("/v1/adapters/:name", async (call) => {
    const name = call.req.param("name");
    const own = adapters.get(name)?.name;
    if (own === undefined || !(await adapters.unload(own))) {
      throw notFound(`There is no adapter '${name.slice(0, 128)}'.`, "name");
    }
    await service.jobs?.forget(own);
    const body: DeletedBody = { id: own, object: "adapter", deleted: true };
    return call.json(body);
  });
};
