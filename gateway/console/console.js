"use strict";
// The operators' page: reads what the operations listener says, every two seconds, and changes nothing.
// The token stays in this variable: it is in no storage and in no address.
let token = "";
let shown = "";
let before = null;
const past = [];
const EVERY_MS = 2000, KEPT = 150, SLOW_MS = 500, MANY = 60;
const STATES = ["connected", "disconnected", "never-connected", "revoked", "disabled"];
const byId = (id) => document.getElementById(id);

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

async function read(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", credentials: "omit", redirect: "error" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

// --- what is shown of workers and units: of the Admin API with a token, else of /status/fleet

async function fleet() {
  if (!token) return (await read("/status/fleet")).json();
  const units = [];
  for (let cursor = ""; ;) {
    const page = await (await read(`/admin/v1/units?limit=500${cursor}`)).json();
    units.push(...page.items.map((one) => ({ ...one, links: one.connections.length })));
    if (page.next === null) break;
    cursor = `&cursor=${encodeURIComponent(page.next)}`;
  }
  const workers = (await (await read("/admin/v1/config/workers")).json()).items;
  for (const worker of workers) {
    const held = units.flatMap((one) => one.connections).filter((one) => one.worker === worker.pid);
    worker.links = held.length;
    worker.streams = held.reduce((sum, one) => sum + one.streams, 0);
  }
  return { units, workers };
}

// --- metrics in Prometheus' text format

function parse(text) {
  const series = [];
  for (const line of text.split("\n")) {
    const found = /^([a-z_]+)(?:\{(.*)\})? ([0-9.e+-]+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] || "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    series.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return series;
}

function sum(series, name, wanted = () => true) {
  return series.reduce((total, one) => (one.name === name && wanted(one.labels) ? total + one.value : total), 0);
}

function count(series) {
  const requests = "caregate_requests_total";
  return {
    at: performance.now(),
    answered: sum(series, requests, (labels) => labels.status < "400"),
    refused: sum(series, requests, (labels) => labels.status >= "400" && labels.status < "500"),
    failed: sum(series, requests, (labels) => labels.status >= "500"),
    inFlight: sum(series, "caregate_requests_in_flight"),
    backlog: sum(series, "caregate_audit_backlog"),
  };
}

function rates(now) {
  if (before === null || now.at <= before.at) return null;
  const seconds = (now.at - before.at) / 1000;
  const rate = (name) => Math.max(0, (now[name] - before[name]) / seconds);
  return { answered: rate("answered"), refused: rate("refused"), failed: rate("failed") };
}

// --- the picture

function showTraffic(series) {
  const now = count(series), rate = rates(now);
  before = now;
  if (rate === null) return;
  past.push(rate);
  if (past.length > KEPT) past.shift();
  const figures = [
    ["answered / s", rate.answered.toFixed(1)], ["refused / s", rate.refused.toFixed(1)],
    ["failed / s", rate.failed.toFixed(1)], ["in flight", now.inFlight], ["audit backlog", now.backlog],
  ];
  byId("figures").replaceChildren(...figures.map(([name, value]) => {
    const group = element("div");
    group.append(element("dt", name), element("dd", value));
    return group;
  }));
  const top = Math.max(1, ...past.flatMap((one) => [one.answered, one.refused, one.failed]));
  byId("chart").replaceChildren(...["answered", "refused", "failed"].map((name) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const at = (index) => 600 - (past.length - 1 - index) * (600 / (KEPT - 1));
    path.setAttribute("d", past.map((one, index) =>
      `${index ? "L" : "M"}${at(index).toFixed(1)} ${(86 - 80 * one[name] / top).toFixed(1)}`).join(""));
    path.setAttribute("class", name);
    return path;
  }));
  const why = series.filter((one) => one.name === "caregate_refusals_total" && one.value > 0);
  why.sort((a, b) => b.value - a.value);
  rows("refusals", ["Why", "Whose", "Since the start"], why.slice(0, 8).map((one) =>
    [one.labels.code, one.labels.origin, one.value.toLocaleString("en")]));
}

function rows(id, headings, lines) {
  const head = element("tr");
  head.append(...headings.map((text) => element("th", text)));
  byId(id).replaceChildren(head, ...lines.map((cells) => {
    const row = element("tr");
    row.append(...cells.map((cell) => (cell instanceof Node ? cell : element("td", cell))));
    return row;
  }));
}

function showWorkers(workers) {
  const newest = Math.max(0, ...workers.map((worker) => worker.version));
  rows("workers", ["Process", "Phase", "Version", "Links", "Streams"], workers.map((worker) => {
    const behind = worker.version < newest || worker.refused;
    const version = `${worker.version} · ${worker.digest.slice(0, 8)}${worker.refused ? ` refuses ${worker.refused.version}` : ""}`;
    return [worker.pid, worker.phase, element("td", version, behind ? "bad" : ""), worker.links, worker.streams];
  }));
}

function showUnits(units) {
  const counts = new Map(STATES.map((state) => [state, units.filter((unit) => unit.state === state).length]));
  byId("count").textContent = `${counts.get("connected")} of ${units.length} connected`;
  byId("states").replaceChildren(...["", ...STATES].map((state) => {
    const button = element("button", state ? `${state} ${counts.get(state)}` : `all ${units.length}`);
    button.type = "button";
    button.setAttribute("aria-pressed", String(shown === state));
    button.addEventListener("click", () => { shown = state; showUnits(units); });
    return button;
  }));
  const list = byId("units"), wanted = units.filter((unit) => !shown || unit.state === shown);
  list.className = wanted.length > MANY ? "many" : "";
  list.replaceChildren(...wanted.map(tile));
}

function tile(unit) {
  const slow = unit.state === "connected" && unit.rtt_ms !== null && unit.rtt_ms > SLOW_MS;
  const item = element("li", undefined, slow ? "connected slow" : unit.state);
  const lines = unit.state === "connected"
    ? [`${unit.rtt_ms === null ? "–" : unit.rtt_ms.toFixed(1)} ms · ${unit.streams} streams`, `${unit.links} links · ${unit.agent}`]
    : [unit.state, [unit.why, unit.last_seen && `seen ${unit.last_seen.slice(0, 19).replace("T", " ")}`].filter(Boolean).join(" · ")];
  item.append(element("b", unit.unit), element("span", lines[0]), element("span", lines[1], "more"));
  item.title = [unit.unit, unit.state, ...lines].filter(Boolean).join("\n");
  return item;
}

async function look() {
  const pulse = byId("pulse");
  try {
    const [found, metrics] = await Promise.all([fleet(), read("/metrics").then((answer) => answer.text())]);
    showTraffic(parse(metrics));
    showWorkers(found.workers);
    showUnits(found.units);
    pulse.className = "";
    pulse.textContent = `as of ${new Date().toISOString().slice(11, 19)} UTC`;
  } catch (error) {
    pulse.className = "lost";
    pulse.textContent = /: (401|403|404)$/.test(error.message)
      ? "the gateway wants a token of the Admin API (admin.units.read, admin.config.read)" : `no answer: ${error.message}`;
  }
  setTimeout(look, EVERY_MS);
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  byId("token").value = "";
  byId("token").placeholder = token ? "in use, until this page is left" : "of the Admin API, optional";
});
look();
