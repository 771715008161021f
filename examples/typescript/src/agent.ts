// An agent in TypeScript: it offers the tool `count_words`, and tells a topic whenever it has counted.
//
//     meshd run                                   (in another shell)
//     npm ci && npm run build && npm start
//     curl -d '{"text": "to be or not to be"}' http://127.0.0.1:7400/counter/count_words

import { Session } from "./session.js";

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
  if (call.operation !== "count_words") throw new Error(`no tool ${call.operation}`);
  const { text } = JSON.parse(call.payload.toString());
  const words = String(text).split(/\s+/).filter(Boolean).length;
  // The delivery's own token: what follows from this call is charged to its workflow.
  await session.publish("words.counted", { words }, call.context?.token);
  return { words };
};

session.onEvent = async (delivery) => {
  console.log(`words.counted: ${delivery.event!.data}, workflow ${delivery.context?.workflow ?? "none"}`);
};

process.once("SIGINT", () => session.close());
process.once("SIGTERM", () => session.close());

await session.connect();
await session.subscribe("words.*");
console.log("counter is open");
