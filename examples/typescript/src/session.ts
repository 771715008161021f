// A session with the sidecar: the whole protocol that an agent needs, on the official grpc-js package.
//
// docs/session.md of meshd says what each frame means; this file keeps its three promises. Order and loss: numbered
// frames are kept until acknowledged, and sent again when a broken stream is resumed. Pace: no more work is sent than
// there is credit for. Status instead of silence: what can no longer be answered is rejected.

import { setTimeout as wait } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./generated/session.js";
import type { CallDelivery__Output as CallDelivery } from "./generated/meshd/v1/CallDelivery.js";
import type { CallReply__Output as CallReply } from "./generated/meshd/v1/CallReply.js";
import type { ConnectRequest } from "./generated/meshd/v1/ConnectRequest.js";
import type { ConnectResponse__Output as ConnectResponse } from "./generated/meshd/v1/ConnectResponse.js";
import type { EventDelivery__Output as EventDelivery } from "./generated/meshd/v1/EventDelivery.js";
import type { Status__Output as Status } from "./generated/meshd/v1/Status.js";
import type { Agent } from "./generated/meshd/v1/Agent.js";

const PROTO = fileURLToPath(new URL("../../../proto/", import.meta.url));
const definition = loadSync("meshd/v1/session.proto", {
  includeDirs: [PROTO], longs: Number, enums: String, defaults: true, oneofs: true, keepCase: true,
});
const api = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;

const CREDIT = 64;
const BACKOFF_MS = { first: 100, max: 10_000 };

/** What the sidecar, or the one who was called, answered in place of a result. */
export class Refused extends Error {
  constructor(readonly status: Status) {
    super(status.message || `code ${status.code}`);
  }
}

/** What `onCall` throws for a status of its own; whatever else it throws is UNKNOWN, a failure of the agent. */
export class Failed extends Error {
  constructor(readonly code: grpc.status, message: string) {
    super(message);
  }
}

type Asked = { resolve: (value: any) => void; reject: (reason: Error) => void; pieces: Buffer[]; request: ConnectRequest };

export class Session {
  /** Answers calls to this agent; set before `connect`. */
  onCall: (call: CallDelivery) => Promise<unknown> = async () => { throw new Error("this agent takes no calls"); };
  /** Handles events; returning is SUCCESS, throwing is RETRY. */
  onEvent: (event: EventDelivery) => Promise<void> = async () => {};

  private readonly client: InstanceType<ProtoGrpcType["meshd"]["v1"]["SessionService"]>;
  private stream?: grpc.ClientDuplexStream<ConnectRequest, ConnectResponse>;
  private name = "";
  private sent = 0;
  private received = 0;
  private ids = 0;
  private credit = 0;
  private handling = 0;
  private unacknowledged: ConnectRequest[] = [];
  private readonly queue: ConnectRequest[] = [];
  private readonly topics = new Set<string>();
  private readonly waiting = new Map<number, Asked>();
  private isOver = false;

  constructor(private readonly agent: Agent, address = process.env.MESHD_API ?? "127.0.0.1:7402") {
    this.client = new api.meshd.v1.SessionService(address, grpc.credentials.createInsecure());
  }

  /** Open the session, and keep it open until `close`. Resolves with the first Welcome. */
  connect(): Promise<void> {
    return new Promise((resolve, reject) => void this.keepOpen(resolve, reject));
  }

  /** Call an agent, or an upstream of the policy, and return the JSON of its reply. */
  async call(target: string, operation: string, payload: unknown, token = ""): Promise<any> {
    const reply = await this.ask((id) => ({
      call: { id, target, operation, token, payload: Buffer.from(JSON.stringify(payload)) },
    }));
    return reply.length ? JSON.parse(reply.toString()) : null;
  }

  /** Publish an event; resolves when it is kept. */
  async publish(topic: string, data: unknown, token = ""): Promise<void> {
    await this.ask((id) => ({
      publish: { id, request: { token, event: { topic, id: crypto.randomUUID(), data: Buffer.from(JSON.stringify(data)) } } },
    }));
  }

  /** Ask for the events of a topic; `*` stands for a word. */
  async subscribe(topic: string): Promise<void> {
    this.topics.add(topic);
    await this.ask((id) => ({ subscribe: { id, request: { topic } } }), false);
  }

  /** Say good-bye; the session is not kept. */
  close(): void {
    this.isOver = true;
    this.write({ goodbye: { reason: "done" } });
    this.stream?.end();
    this.client.close();
  }

  // ---------------------------------------------------------------- the stream

  private async keepOpen(opened: () => void, failed: (why: Error) => void): Promise<void> {
    for (let delay = BACKOFF_MS.first; !this.isOver; delay = Math.min(2 * delay, BACKOFF_MS.max)) {
      const why = await this.once(() => { delay = BACKOFF_MS.first; opened(); });
      if (this.isOver) return;
      const isOurFault = [grpc.status.INVALID_ARGUMENT, grpc.status.PERMISSION_DENIED, grpc.status.UNIMPLEMENTED];
      if (why && isOurFault.includes(why.code)) {
        this.isOver = true;
        this.rejectAll(why);
        return failed(why);
      }
      await wait(Math.random() * delay); // Full jitter: agents that lost one sidecar do not come back as one.
    }
  }

  /** One stream, from Hello to its end. */
  private once(welcomed: () => void): Promise<grpc.ServiceError | undefined> {
    return new Promise((end) => {
      const stream = (this.stream = this.client.connect());
      stream.on("data", (response: ConnectResponse) => {
        if (response.welcome) welcomed();
        this.take(response);
      });
      stream.on("error", (why: grpc.ServiceError) => end(why));
      stream.on("end", () => end(undefined));
      stream.write({
        hello: {
          revision: 1, agent: this.agent, session: this.name, received: this.received, credit: CREDIT - this.handling,
          client: "meshd-example-typescript/1",
        },
      });
    });
  }

  private take(response: ConnectResponse): void {
    this.unacknowledged = this.unacknowledged.filter((request) => Number(request.seq) > response.ack);
    if (response.seq) {
      if (response.seq <= this.received) return; // Sent again, and handled already.
      this.received = response.seq;
    }
    switch (response.frame) {
      case "welcome": return this.welcome(response);
      case "call": return void this.answer(response.call!);
      case "event": return void this.handle(response.event!);
      case "reply": return this.settle(response.reply!, response.reply!.payload);
      case "published": return this.settle({ ...response.published!, has_more: false }, Buffer.alloc(0));
      case "subscribed": return this.settle({ ...response.subscribed!, has_more: false }, Buffer.alloc(0), false);
      case "credit": this.credit += response.credit!.frames; return this.drainQueue();
      default: if (response.seq) this.write({}); // Nothing that we know: said to be received, and passed over.
    }
  }

  private welcome({ welcome }: ConnectResponse): void {
    const { session, is_resumed, received } = welcome!;
    let credit = welcome!.credit;
    if (is_resumed) {
      const again = this.unacknowledged.filter((request) => Number(request.seq) > received);
      this.unacknowledged = [];
      for (const request of again) {
        if (request.call || request.publish) credit -= 1;
        this.unacknowledged.push(request);
        this.write(request);
      }
    } else if (this.name) {
      this.name = session;
      return this.beginAgain(credit);
    }
    this.name = session;
    this.credit = credit;
    this.drainQueue();
  }

  /** The sidecar was restarted, and knows nothing of us. */
  private beginAgain(credit: number): void {
    this.sent = this.received = 0;
    this.credit = credit;
    this.unacknowledged = [];
    this.queue.length = 0;
    for (const [id, one] of this.waiting) {
      // A publication is kept once for its event id, however often it is sent; a call may have been made or not.
      if (one.request.publish) this.work(one.request);
      else if (one.request.call) {
        this.waiting.delete(id);
        one.reject(new Error("the sidecar was restarted before it answered: the call may or may not have been made"));
      } else this.waiting.delete(id);
    }
    for (const topic of this.topics) void this.subscribe(topic).catch(console.error);
  }

  // ---------------------------------------------------------------- what others ask

  private async answer(call: CallDelivery): Promise<void> {
    this.handling += 1;
    let reply: object;
    try {
      const result = await this.onCall(call);
      reply = { status: { code: grpc.status.OK }, payload: Buffer.from(JSON.stringify(result ?? null)) };
    } catch (error) {
      const code = error instanceof Failed ? error.code : grpc.status.UNKNOWN;
      reply = { status: { code, message: error instanceof Failed ? error.message : String(error) } };
    }
    this.done({ reply: { id: call.id, ...reply } });
  }

  private async handle(event: EventDelivery): Promise<void> {
    this.handling += 1;
    let settle: object;
    try {
      await this.onEvent(event);
      settle = { verdict: "VERDICT_SUCCESS" };
    } catch (error) {
      settle = { verdict: "VERDICT_RETRY", reason: String(error) };
    }
    this.done({ settle: { id: event.id, ...settle } });
  }

  private done(request: ConnectRequest): void {
    this.number(request);
    this.handling -= 1;
    this.write({ credit: { frames: 1 } });
  }

  // ---------------------------------------------------------------- what we ask

  private ask(frame: (id: number) => ConnectRequest, isWork = true): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      const id = ++this.ids;
      const request = frame(id);
      this.waiting.set(id, { resolve, reject, pieces: [], request });
      if (isWork) this.work(request);
      else this.number(request);
    });
  }

  private work(request: ConnectRequest): void {
    this.queue.push(request);
    this.drainQueue();
  }

  private drainQueue(): void {
    while (this.credit > 0 && this.queue.length) {
      this.credit -= 1;
      this.number(this.queue.shift()!);
    }
  }

  private settle(reply: Pick<CallReply, "id" | "status" | "has_more">, piece: Buffer, isWork = true): void {
    this.write({}); // Acknowledges.
    const one = this.waiting.get(reply.id);
    one?.pieces.push(piece);
    if (reply.has_more) return;
    this.waiting.delete(reply.id);
    if (reply.status?.code) one?.reject(new Refused(reply.status));
    else one?.resolve(Buffer.concat(one.pieces));
  }

  private rejectAll(why: Error): void {
    for (const one of this.waiting.values()) one.reject(why);
    this.waiting.clear();
    this.queue.length = 0;
  }

  /** Send a frame that must arrive. */
  private number(request: ConnectRequest): void {
    const numbered = { ...request, seq: ++this.sent };
    this.unacknowledged.push(numbered);
    this.write(numbered);
  }

  private write(request: ConnectRequest): void {
    this.stream?.write({ ...request, ack: this.received });
  }
}
