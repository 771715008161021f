// An MCP client of the official packages, as they are, at meshd's one address for all MCP servers.
//
//   npm run build && npm run mcp -- http://127.0.0.1:7400/mcp         the current package, the newest revision that both speak
//   npm run mcp -- http://127.0.0.1:7400/mcp v1                       the package before it, over streamable HTTP
//   npm run mcp -- http://127.0.0.1:7400/mcp/sse sse                  the same, over the transport of 2024-11-05
//
// It prints what there is as one line of JSON, and calls the tools that its other arguments name: NAME={"json":"arguments"}.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { Client as OldClient } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport as OldTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const ME = { name: "meshd-example", version: "1.0.0" };

interface Listed {
  name: string;
  uri?: string;
}

/** What both packages' clients do alike. */
interface Connected {
  listTools(): Promise<{ tools: Listed[] }>;
  listPrompts(): Promise<{ prompts: Listed[] }>;
  listResources(): Promise<{ resources: Listed[] }>;
  callTool(params: { name: string; arguments: Record<string, unknown> }): Promise<object>;
  close(): Promise<void>;
}

async function connect(url: URL, which: string): Promise<Connected> {
  if (which === "v2") {
    const client = new Client(ME, { versionNegotiation: { mode: "auto" } });
    await client.connect(new StreamableHTTPClientTransport(url));
    return client as unknown as Connected;
  }
  const client = new OldClient(ME);
  // Its types are of before `exactOptionalPropertyTypes`.
  const transport = which === "sse" ? new SSEClientTransport(url) : new OldTransport(url);
  await client.connect(transport as Parameters<typeof client.connect>[0]);
  return client as unknown as Connected;
}

async function main([address, ...rest]: string[]): Promise<void> {
  if (!address) throw new Error("the address of the gateway is missing, such as http://127.0.0.1:7400/mcp");
  const which = ["v1", "v2", "sse"].includes(rest[0] ?? "") ? (rest.shift() as string) : "v2";
  const client = await connect(new URL(address), which);
  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  const prompts = (await client.listPrompts()).prompts.map((prompt) => prompt.name);
  const resources = (await client.listResources()).resources.map((resource) => resource.uri);
  console.log(JSON.stringify({ client: which, tools, prompts, resources }));
  for (const call of rest) {
    const at = call.indexOf("=");
    const name = at < 0 ? call : call.slice(0, at);
    const given = at < 0 ? {} : (JSON.parse(call.slice(at + 1)) as Record<string, unknown>);
    try {
      console.log(JSON.stringify({ name, result: await client.callTool({ name, arguments: given }) }));
    } catch (error) {
      console.log(JSON.stringify({ name, error: String(error) }));
    }
  }
  await client.close();
}

main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(String(error));
  process.exitCode = 1;
});
