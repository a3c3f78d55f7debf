import { describe, expect, it } from "vitest";
import { Exchange } from "./exchange.ts";
import { SpanExporter, spanSettings } from "./spans.ts";

const envOf =
  (values: Readonly<Record<string, string>>): ((name: string) => string | undefined) =>
  (name) =>
    values[name];

describe("spanSettings", () => {
  it("asks for nothing unless the environment does", () => {
    expect(spanSettings(envOf({}))).toBeUndefined();
    const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318/" };
    expect(spanSettings(envOf({ ...endpoint, OTEL_SDK_DISABLED: "true" }))).toBeUndefined();
    const named = { OTEL_EXPORTER_OTLP_HEADERS: "a=b%20c, d=e", OTEL_SERVICE_NAME: "mine" };
    expect(spanSettings(envOf({ ...endpoint, ...named }))).toEqual({
      url: "http://collector:4318/v1/traces",
      headers: { a: "b c", d: "e" },
      serviceName: "mine",
    });
  });
});

describe("SpanExporter", () => {
  it("sends spans as OTLP in JSON, under the caller's trace", async () => {
    const sent: { url: string; body: unknown }[] = [];
    const settings = { url: "http://collector/v1/traces", headers: {}, serviceName: "plasticity" };
    const exporter = new SpanExporter(
      settings,
      async (url, init) => {
        sent.push({ url: String(url), body: JSON.parse(String(init!.body)) as unknown });
        return new Response("{}");
      },
      () => {},
    );
    const exchange = new Exchange("req_1", "POST", 0, undefined);
    exchange.route = "/v1/completions";
    exchange.notes.model = "builtin";
    exchange.notes.newTokens = 7;
    const trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    exporter.add(exchange, 200, 1_700_000_000_250, 250, `00-${trace}-00f067aa0ba902b7-01`);
    await exporter.flush();
    expect(sent).toHaveLength(1);
    expect(sent[0]).toMatchObject({
      url: settings.url,
      body: {
        resourceSpans: [
          {
            resource: {
              attributes: [{ key: "service.name", value: { stringValue: "plasticity" } }],
            },
            scopeSpans: [
              {
                spans: [
                  {
                    traceId: trace,
                    parentSpanId: "00f067aa0ba902b7",
                    spanId: expect.stringMatching(/^[0-9a-f]{16}$/),
                    name: "POST /v1/completions",
                    startTimeUnixNano: "1700000000000000000",
                    endTimeUnixNano: "1700000000250000000",
                    attributes: expect.arrayContaining([
                      { key: "gen_ai.usage.output_tokens", value: { intValue: "7" } },
                    ]),
                    status: { code: 0 },
                  },
                ],
              },
            ],
          },
        ],
      },
    });
  });

  it("goes on where nobody takes them, and says so once", async () => {
    const warnings: string[] = [];
    const settings = { url: "http://nowhere", headers: {}, serviceName: "x" };
    const refuse = async (): Promise<Response> => new Response("", { status: 503 });
    const exporter = new SpanExporter(settings, refuse, (message) => warnings.push(message));
    for (let i = 0; i < 2; i++) {
      exporter.add(new Exchange("r", "GET", 0, undefined), 200, 1000, 1, null);
      await exporter.flush();
    }
    expect(warnings).toEqual(["spans cannot be sent: Error: it answered 503."]);
  });
});
