// An identity provider from the npm registry (oauth2-mock-server), told what to do by lines of JSON on its standard input.
const path = require("node:path");
const { createInterface } = require("node:readline");
const [modules, port] = process.argv.slice(2);
const { OAuth2Server } = require(path.join(modules, "node_modules", "oauth2-mock-server"));

async function main() {
  const server = new OAuth2Server();
  await server.issuer.keys.generate("RS256", { kid: "rsa-1" });
  await server.start(Number(port), "127.0.0.1");
  server.issuer.url = `http://127.0.0.1:${port}`;
  server.service.on("beforeTokenSigning", (token, req) => {
    Object.assign(token.payload, JSON.parse(req.body.claims ?? "{}"));
  });
  const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");
  say({ issuer: server.issuer.url });
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    if (asked.generate) {
      await server.issuer.keys.generate(asked.generate, { kid: asked.kid });
      say({});
    } else {
      const transform = (header, payload) => Object.assign(payload, asked.claims);
      say({ token: await server.issuer.buildToken({ kid: asked.kid, scopesOrTransform: transform, expiresIn: 300 }) });
    }
  }
  await server.stop();
}

main();
