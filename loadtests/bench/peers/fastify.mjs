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
await app.listen({ port: Number(env.BENCH_PORT), host: "127.0.0.1" });
