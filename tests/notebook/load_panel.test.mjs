// The panel of a load run, in Node.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { shown as shownPicture } from "./dom_stub.mjs";

const PICTURE = {
  title: "Endpoint churn under load",
  state: "measuring",
  status: "measuring: 4 connections, json",
  fraction: 0.25,
  head: ["load", "requests/s", "p50", "p99", "errors"],
  measurements: [
    { label: "1 connection, json", state: "done", cells: ["900", "1 ms", "2 ms", "0"] },
    { label: "2 connections, json", state: "done", cells: ["1,600", "1.1 ms", "", "HTTP 503: 2"] },
    { label: "4 connections, json", state: "running", cells: [] },
    { label: "interface alone, json", state: "waiting", cells: [] },
  ],
  throughput: [{ name: "json", unit: "", points: [[1, 900], [2, 1600]] }],
  latencies: [],
  notices: [],
  error: "",
  hint: "",
  final: false,
};
const shown = (changes = {}) => shownPicture({ ...PICTURE, ...changes });

beforeEach(() => mock.timers.enable({ apis: ["setInterval", "Date"], now: 1_000_000 }));
afterEach(() => mock.timers.reset());

test("each measurement is a row with its numbers, and its state without color", () => {
  const { el } = shown();
  const rows = el.byClass("aiaas-row");
  assert.deepEqual(rows.map((row) => row.children[0].textContent), [
    "✓ 1 connection, json",
    "✓ 2 connections, json",
    "▶ 4 connections, json",
    "interface alone, json",
  ]);
  assert.deepEqual(rows.map((row) => row.children.length), [5, 5, 5, 5]);
  assert.match(rows[1].textContent, /1,600.*1\.1 ms.*HTTP 503: 2/);
  assert.deepEqual(el.all((node) => node.attributes.scope === "col").map((node) => node.textContent), PICTURE.head);
});

test("throughput has a chart from the second point on", () => {
  assert.match(shown().el.byRole("img")[0].attributes["aria-label"], /requests\/s by connections: json from 900 to 1,600/);
  const one = [{ name: "json", unit: "", points: [[1, 900]] }];
  assert.equal(shown({ throughput: one }).el.byRole("img").length, 0);
});

test("latency has a chart by rate", () => {
  const { el } = shown({ latencies: [{ name: "p50", unit: "ms", points: [[100, 1], [200, 2]] }, { name: "p99", unit: "ms", points: [[100, 3], [200, 9]] }] });
  assert.match(el.byRole("img")[1].attributes["aria-label"], /latency by rate: p50 from 1 ms to 2 ms; p99 from 3 ms to 9 ms/);
});

test("a new measurement is said at once", () => {
  const { model, el } = shown();
  model.set({ status: "measuring: interface alone, json" });
  assert.match(el.byRole("status")[0].textContent, /interface alone/);
});

test("what comes from an endpoint is text, never markup", () => {
  const evil = "<img src=x onerror=alert(1)>";
  const { el } = shown({ title: evil, measurements: [{ label: evil, state: "done", cells: [evil, evil, evil, evil] }] });
  assert.equal(el.all((node) => node.tag === "img").length, 0);
  assert.ok(el.textContent.includes(evil));
});

test("cleaning up ends the timer and the listening", () => {
  const { model, cleanUp } = shown();
  cleanUp();
  assert.equal(model.listeners.size, 0);
});
