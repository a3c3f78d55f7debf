/** `/v1/files`: data for fine-tuning, read as training reads it before it is kept. */
import { StateError } from "../../index.ts";
import type { DeletedBody, FileBody } from "../api-types.ts";
import { readBody } from "../body.ts";
import { ApiError, notFound, wrong } from "../errors.ts";
import type { FileStore } from "../file-store.ts";
import { pageOf } from "../paging.ts";
import type { Call, Routes, Service } from "../service.ts";

const purposes = ["fine-tune", "user_data"] as const;

/** @throws ApiError 501 where nothing is kept. */
function storeOf({ files }: Service): FileStore {
  if (files) return files;
  throw new ApiError(501, "This server keeps no files: it was started without --data-folder.", {
    code: "not_available",
  });
}

const missing = (id: string): ApiError => notFound(`No such File object: ${id.slice(0, 64)}`, "id");

async function formOf(call: Call, { limits }: Service): Promise<FormData> {
  const type = call.req.header("content-type") ?? "";
  if (!/^multipart\/form-data\s*;/i.test(type)) {
    throw new ApiError(
      415,
      `Unsupported content type: expected 'multipart/form-data', but got '${type.split(";")[0]!.slice(0, 60)}'.`,
      { code: "unsupported_content_type" },
    );
  }
  // The frame around the file is small.
  const bytes = await readBody(call.req.raw, limits.fileBytes + 65536, limits.fileMs);
  try {
    return await new Response(bytes, { headers: { "content-type": type } }).formData();
  } catch {
    throw wrong("The body of the request is no form: its parts could not be read.");
  }
}

async function upload(call: Call, service: Service): Promise<Response> {
  const store = storeOf(service);
  const form = await formOf(call, service);
  const [file, purpose] = [form.get("file"), form.get("purpose")];
  if (file === null || typeof file === "string") {
    throw wrong("Missing required parameter: 'file'.", "file", "missing_required_parameter");
  }
  if (typeof purpose !== "string") {
    throw wrong("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter");
  }
  if (!(purposes as readonly string[]).includes(purpose)) {
    throw wrong(
      `Invalid value for 'purpose': got '${purpose.slice(0, 40)}', supported are ${purposes.map((one) => `'${one}'`).join(", ")}.`,
      "purpose",
    );
  }
  if (file.size > service.limits.fileBytes) {
    throw new ApiError(413, `The file is larger than ${service.limits.fileBytes} bytes.`, {
      code: "file_too_large",
    });
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    return call.json(await store.add(file.name, purpose, bytes, service.now()));
  } catch (error) {
    if (error instanceof StateError) {
      throw new ApiError(507, error.message, { code: "no_room", type: "invalid_request_error" });
    }
    throw error;
  }
}

export const fileRoutes: Routes = (app, service) => {
  app.post("/v1/files", (call) => upload(call, service));

  app.get("/v1/files", (call) => {
    const purpose = call.req.query("purpose");
    const order = call.req.query("order") ?? "desc";
    if (order !== "asc" && order !== "desc") {
      throw wrong("Invalid 'order': expected 'asc' or 'desc'.", "order");
    }
    const found = storeOf(service).list.filter(
      (file) => purpose === undefined || file.purpose === purpose,
    );
    const items: readonly FileBody[] = order === "asc" ? found : [...found].reverse();
    return call.json(pageOf(call, items, 10_000, 10_000));
  });

  app.get("/v1/files/:id", (call) => {
    const id = call.req.param("id");
    const file = storeOf(service).get(id);
    if (!file) throw missing(id);
    return call.json(file);
  });

  app.get("/v1/files/:id/content", async (call) => {
    const id = call.req.param("id");
    const content = await storeOf(service).content(id);
    if (!content) throw missing(id);
    return call.body(content, 200, {
      "content-type": "application/octet-stream",
      "content-disposition": "attachment",
    });
  });

  app.delete("/v1/files/:id", async (call) => {
    const id = call.req.param("id");
    if (service.jobs?.needs(id)) {
      throw new ApiError(409, `The file ${id} is needed by a job that is not over.`, {
        code: "conflict",
      });
    }
    if (!(await storeOf(service).remove(id))) throw missing(id);
    const body: DeletedBody = { id, object: "file", deleted: true };
    return call.json(body);
  });
};
