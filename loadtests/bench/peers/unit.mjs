// The unit's side of the relay in fastify.mjs: dials in, asks the plain HTTP service, answers in JSON envelopes.
import http from "node:http";
import { WebSocket } from "ws";

const env = process.env, agent = new http.Agent({ keepAlive: true, maxSockets: 64 }), { hostname, port } = new URL(env.BENCH_UPSTREAM);
const link = new WebSocket(env.BENCH_RELAY, { headers: { authorization: `Bearer ${env.BENCH_UNIT_KEY}` }, perMessageDeflate: false });
link.on("message", (data) => {
  const frame = JSON.parse(data);
  link.send(JSON.stringify({ id: frame.id, ack: true }));
  const request = http.request({ agent, hostname, port, method: frame.m, path: frame.t, headers: Object.fromEntries(frame.h) }, (response) => {
    const pieces = [];
    response.on("data", (piece) => pieces.push(piece));
    response.on("end", () => {
      const raw = response.rawHeaders, h = [];
      for (let i = 0; i < raw.length; i += 2) h.push([raw[i].toLowerCase(), raw[i + 1]]);
      link.send(JSON.stringify({ id: frame.id, s: response.statusCode, h, body: Buffer.concat(pieces).toString() }));
    });
  });
  request.on("error", () => link.send(JSON.stringify({ id: frame.id, s: 502, h: [], body: "" })));
  request.end();
});
link.on("close", () => process.exit(0));
link.on("error", (error) => { console.error(error.message); process.exit(1); });
