// An agent in TypeScript: it offers the tool `count_words`, and tells a topic whenever it has counted.
//
//     meshd run                                   (in another shell)
//     npm ci && npm run build && npm start
//     curl -H 'content-type: application/json' -d '{"text": "to be or not to be"}' http://127.0.0.1:7400/counter/count_words

import { status } from "@grpc/grpc-js";
import { Failed, Session } from "./session.js";

const session = new Session({
  name: "counter",
  version: "1.0.0",
  description: "Counts words.",
  intents: ["count the words of a text"],
  tools: [{
    name: "count_words",
    description: "Count the words of a text.",
    input_schema: JSON.stringify({ type: "object", properties: { text: { type: "string" } }, required: ["text"] }),
    is_read_only: true,
  }],
});

session.onCall = async (call) => {
  if (call.operation !== "count_words") throw new Failed(status.NOT_FOUND, `no tool ${call.operation}`);
  const text = textOf(call.payload.toString());
  const words = text.split(/\s+/).filter(Boolean).length;
  // The delivery's own token: what follows from this call is charged to its workflow.
  await session.publish("words.counted", { words }, call.context?.token);
  return { words };
};

function textOf(payload: string): string {
  let text: unknown;
  try {
    text = JSON.parse(payload)?.text;
  } catch {
    // Said below, as what is JSON and holds no text is.
  }
  if (typeof text !== "string") throw new Failed(status.INVALID_ARGUMENT, 'the arguments are JSON such as {"text": "to be"}');
  return text;
}

session.onEvent = async (delivery) => {
  console.log(`words.counted: ${delivery.event!.data}, workflow ${delivery.context?.workflow ?? "none"}`);
};

process.once("SIGINT", () => session.close());
process.once("SIGTERM", () => session.close());

await session.connect();
await session.subscribe("words.*");
console.log("counter is open");
