// The same policy in fastify: verify (cached), issuer, audience, expiry, role, rate limit; then answer, proxy, relay or query.
import Fastify from "fastify";
import jwt from "@fastify/jwt";
import rateLimit from "@fastify/rate-limit";
import httpProxy from "@fastify/http-proxy";
import { readFileSync } from "node:fs";

const env = process.env;
const app = Fastify({ logger: false });
const secret = env.BENCH_ALG === "RS256" ? { public: readFileSync(env.BENCH_KEY, "utf8") } : readFileSync(env.BENCH_KEY, "utf8");
await app.register(jwt, {
  secret,
  verify: {
    algorithms: [env.BENCH_ALG], allowedIss: env.BENCH_ISSUER, allowedAud: env.BENCH_AUDIENCE,
    cache: Number(env.BENCH_CACHE) || false,
  },
});
await app.register(rateLimit, { max: 100000000, timeWindow: 1000, keyGenerator: (request) => request.user?.sub ?? request.ip, hook: "preHandler" });
app.addHook("onRequest", async (request, reply) => {
  try { await request.jwtVerify(); } catch { return reply.code(401).send({ error: "invalid_token" }); }
  if (request.user.role !== env.BENCH_ROLE) return reply.code(403).send({ error: "insufficient_scope" });
});
app.get("/policy", async () => ({ ok: true }));
if (env.BENCH_UPSTREAM) await app.register(httpProxy, { upstream: env.BENCH_UPSTREAM, prefix: "/up", rewritePrefix: "/up" });
if (env.BENCH_PG_HOST) {
  const pg = (await import("pg")).default;
  const pool = new pg.Pool({ host: env.BENCH_PG_HOST, user: env.BENCH_PG_USER, database: env.BENCH_PG_DATABASE, max: 16 });
  app.get("/portal/:patient", async (request, reply) => {
    const { rows } = await pool.query({ name: "read", text: env.BENCH_PG_QUERY, values: [request.params.patient] });
    return reply.type("application/json").send(rows[0].answer);
  });
}
if (env.BENCH_UNIT_KEY) await relay();
await app.listen({ port: Number(env.BENCH_PORT), host: "127.0.0.1" });

// A relay as one would write it: units dial in, requests travel as JSON envelopes, ACK and RES come back.
async function relay() {
  const { WebSocketServer } = await import("ws");
  const { randomUUID } = await import("node:crypto");
  const dropped = new Set(["authorization", "connection", "content-length", "cookie", "expect", "forwarded", "host", "keep-alive",
    "proxy-authenticate", "proxy-authorization", "proxy-connection", "relay-source", "set-cookie", "te", "trailer", "transfer-encoding",
    "upgrade", "x-forwarded-for", "x-request-id"]);
  const travels = (name) => !dropped.has(name) && !name.startsWith("x-caregate-");
  const units = new Map(), pending = new Map(), wss = new WebSocketServer({ noServer: true, perMessageDeflate: false });
  let last = 0;
  app.server.on("upgrade", (request, socket, head) => {
    if (request.headers.authorization !== `Bearer ${env.BENCH_UNIT_KEY}`) return socket.end("HTTP/1.1 401 Unauthorized\r\n\r\n");
    wss.handleUpgrade(request, socket, head, (link) => {
      const unit = request.url.split("/")[2];
      units.set(unit, link);
      link.on("close", () => units.get(unit) === link && units.delete(unit));
      link.on("message", (data) => {
        const frame = JSON.parse(data), call = pending.get(frame.id);
        if (!call) return;
        if (frame.ack) { call.acked = true; return; }
        pending.delete(frame.id);
        clearTimeout(call.timer);
        call.resolve(frame);
      });
    });
  });
  app.get("/units/:unit/*", async (request, reply) => {
    const link = units.get(request.params.unit);
    if (!link || link.readyState !== 1) return reply.code(503).send({ error: "client not connected" });
    const id = ++last, h = [], requestId = randomUUID();
    for (const name in request.headers) if (travels(name)) h.push([name, request.headers[name]]);
    h.push(["x-request-id", requestId]);
    const answer = await new Promise((resolve) => {
      const timer = setTimeout(() => { pending.delete(id); resolve({ s: 504, h: [], body: "" }); }, 30000);
      pending.set(id, { resolve, timer, acked: false });
      link.send(JSON.stringify({ id, m: request.method, t: "/" + request.params["*"], h, dl: 30000, body: "" }));
    });
    reply.code(answer.s);
    for (const [name, value] of answer.h) if (travels(name)) reply.header(name, value);
    reply.header("relay-source", "unit").header("x-request-id", requestId);
    return reply.send(answer.body);
  });
}
