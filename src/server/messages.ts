/** Messages and tools of a chat request, as the template takes them. */

import {
  type ChatMessage,
  type ChatTool,
  knowsTools,
  type ToolCall,
  type ToolChoice,
  withToolsAsText,
} from "../index.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { wrong } from "./errors.ts";
import {
  either,
  type Field,
  flag,
  ignored,
  isText,
  list,
  need,
  nested,
  object,
  oneOf,
  readFields,
  text,
  wrongType,
} from "./fields.ts";
import type { EncodeAsk } from "./served.ts";

const maxMessages = 2048;
const maxText = 2 ** 24;
const maxTools = 128;

const roles = ["system", "developer", "user", "assistant", "tool"] as const;

/** A part of a content in parts; of texts alone there are several. */
const part: Field<string> = {
  read: (value, param) => {
    const { type } = readFields(
      object.read(value, param),
      { type: need(text(64)) },
      `${param}.`,
      true,
    );
    if (type !== "text" && type !== "refusal") {
      throw wrong(
        `Invalid value for '${param}.type': this server reads texts, got '${type}'.`,
        `${param}.type`,
      );
    }
    const own = readFields(
      object.read(value, param),
      { [type]: need(text(maxText)) },
      `${param}.`,
      true,
    );
    return own[type] as string;
  },
};

const content: Field<string | readonly string[]> = either(isText, text(maxText), list(part, 4096));

const call: Field<ToolCall> = {
  read: (value, param) => {
    const own = readFields(
      object.read(value, param),
      {
        id: need(text(256)),
        type: oneOf("function"),
        function: need(nested({ name: need(text(64, 1)), arguments: need(text(maxText)) }, true)),
      },
      `${param}.`,
      true,
    );
    const where = `${param}.function.arguments`;
    const given = own.function.arguments;
    const parsed: JsonValue = given.trim() === "" ? {} : parseJson(given, where);
    if (!isJsonObject(parsed)) throw wrongType(where, "the JSON text of an object", parsed);
    return { id: own.id, name: own.function.name, arguments: parsed };
  },
};

const message: Field<ChatMessage> = {
  read: (value, param) => {
    const own = readFields(
      object.read(value, param),
      {
        role: need(oneOf(...roles)),
        content,
        name: text(64),
        tool_calls: list(call, maxTools),
        tool_call_id: text(256),
      },
      `${param}.`,
      true,
    );
    const { role, tool_calls: toolCalls } = own;
    const hasCalls = toolCalls !== undefined && toolCalls.length > 0;
    if (hasCalls && role !== "assistant") {
      throw wrong(
        `'${param}.tool_calls' belongs to messages of the assistant.`,
        `${param}.tool_calls`,
      );
    }
    if (own.content === undefined && !hasCalls) {
      throw wrong(
        `Invalid value for '${param}.content': expected a string, got null.`,
        `${param}.content`,
        "invalid_type",
      );
    }
    if (role === "tool" && own.tool_call_id === undefined) {
      throw wrong(
        `Missing required parameter: '${param}.tool_call_id'.`,
        `${param}.tool_call_id`,
        "missing_required_parameter",
      );
    }
    const said = own.content ?? "";
    return {
      role: role === "developer" ? "system" : role,
      content: typeof said === "string" ? said : said.join(""),
      ...(hasCalls && { toolCalls }),
      ...(own.tool_call_id !== undefined && { toolCallId: own.tool_call_id }),
      ...(own.name !== undefined && { name: own.name }),
    };
  },
};

export const messages: Field<readonly ChatMessage[]> = list(message, maxMessages, 1);

const tool: Field<ChatTool> = {
  read: (value, param) => {
    const own = readFields(
      object.read(value, param),
      {
        type: need(oneOf("function")),
        function: need(
          nested({
            name: need(text(64, 1)),
            description: text(2 ** 16),
            parameters: object,
            strict: flag,
          }),
        ),
      },
      `${param}.`,
    );
    const { name, description, parameters, strict } = own.function;
    return {
      type: "function",
      function: {
        name,
        ...(description !== undefined && { description }),
        ...(parameters !== undefined && { parameters }),
        ...(strict !== undefined && { strict }),
      },
    };
  },
};

export const tools: Field<readonly ChatTool[]> = list(tool, maxTools);

export const toolChoice: Field<ToolChoice> = either(
  isText,
  oneOf("none", "auto", "required"),
  nested({
    type: need(oneOf("function")),
    function: need(nested({ name: need(text(64, 1)) })),
  }) as Field<ToolChoice>,
);

export interface ResponseFormat {
  readonly type: "text" | "json_object" | "json_schema";
  readonly json_schema?:
    | {
        readonly name: string;
        readonly schema?: JsonObject | undefined;
        readonly strict?: boolean | undefined;
      }
    | undefined;
}

export const responseFormat: Field<ResponseFormat> = nested({
  type: need(oneOf("text", "json_object", "json_schema")),
  json_schema: nested({
    name: need(text(64, 1)),
    description: ignored,
    schema: object,
    strict: flag,
  }),
}) as Field<ResponseFormat>;

/** What is encoded of a chat: templates that know no tools are told of them in words. */
export function askOf(
  said: readonly ChatMessage[],
  own: readonly ChatTool[],
  templateText: string,
): EncodeAsk {
  if (knowsTools(templateText)) {
    return { kind: "chat", messages: said, ...(own.length > 0 && { tools: own }) };
  }
  if (own.length > 0) return { kind: "chat", messages: withToolsAsText(said, own) };
  const hasCalls = said.some(({ role, toolCalls }) => role === "tool" || toolCalls);
  if (!hasCalls) return { kind: "chat", messages: said };
  const [first] = said;
  const [, ...plain] = withToolsAsText(said, []);
  return { kind: "chat", messages: first?.role === "system" ? [first, ...plain] : plain };
}
