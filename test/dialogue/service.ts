/** A service on this machine that speaks OpenAI's chat completions, and does what a test tells it to. */
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface Call {
  body: Record<string, unknown>;
  headers: IncomingHttpHeaders;
  path: string;
  /** Milliseconds. */
  at: number;
}
export type Handler = (call: Call, response: ServerResponse) => void;

export class Service {
  calls: Call[] = [];
  handler: Handler = (_, response) => say(response, "");
  url = "";
  private readonly server = createServer((request, response) => {
    let text = "";
    request.on("data", (data) => {
      text += data;
    });
    request.on("end", () => {
      const body = JSON.parse(text) as Record<string, unknown>;
      const call = { body, headers: request.headers, path: request.url ?? "", at: performance.now() };
      this.calls.push(call);
      this.handler(call, response);
    });
  });

  async open(): Promise<void> {
    await new Promise<void>((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/v1`;
  }
  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}

export function say(response: ServerResponse, content: unknown, finish = "stop"): void {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ choices: [{ message: { content }, finish_reason: finish }] }));
}
export function fail(response: ServerResponse, status: number, text = "", headers: Record<string, string> = {}): void {
  response.writeHead(status, headers).end(text);
}
export const promptOf = ({ body }: Call): string => (body.messages as { content: string }[])[0].content;
