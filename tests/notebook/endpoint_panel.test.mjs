// The panel of a watched endpoint, in Node.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { shown as shownPicture } from "./dom_stub.mjs";

const PICTURE = {
  title: "Endpoint churn",
  state: "answering",
  status: "812 requests/s; p50 0.7 ms, p99 2.1 ms",
  fraction: 0.4,
  elapsed: "12 s of 30 s",
  tiles: [{ label: "requests/s", value: "812" }, { label: "p99", value: "2.1 ms" }],
  rates: [{ name: "requests/s", unit: "", points: [[0, 790], [1, 12_345], [2, 812]] }],
  latencies: [
    { name: "p50", unit: "ms", points: [[0, 0.6], [1, 0.8], [2, 0.7]] },
    { name: "p99", unit: "ms", points: [[0, 2], [1, 9.5], [2, 2.1]] },
  ],
  versions: [{ name: "version 1", share: 0.9, rate: "731 requests/s" }, { name: "version 2", share: 0.1, rate: "81 requests/s" }],
  notices: [],
  error: "",
  hint: "To stop: interrupt the kernel.",
  final: false,
};
const shown = (changes = {}) => shownPicture({ ...PICTURE, ...changes });

beforeEach(() => mock.timers.enable({ apis: ["setInterval", "Date"], now: 1_000_000 }));
afterEach(() => mock.timers.reset());

test("the numbers of the moment are labeled tiles, and the line below the bar says how far the watch is", () => {
  const { el } = shown();
  assert.deepEqual(el.byClass("aiaas-tile").map((node) => node.textContent.trim().replace(/\s+/g, " ")), ["requests/s 812", "p99 2.1 ms"]);
  assert.equal(el.byClass("aiaas-status")[0].textContent, "12 s of 30 s");
  assert.match(el.byRole("progressbar")[0].attributes["aria-valuetext"], /812 requests/);
});

test("rate and latency have a chart each, from zero, with units for a screen reader", () => {
  const { el } = shown();
  const [rate, latency] = el.byRole("img");
  assert.match(rate.attributes["aria-label"], /requests\/s from 790 to 812/);
  assert.match(latency.attributes["aria-label"], /latency: p50 from 0.6 ms to 0.7 ms; p99 from 2 ms to 2.1 ms/);
  const [first] = rate.all((node) => node.tag === "polyline")[0].attributes.points.split(" ");
  assert.ok(Number(first.split(",")[1]) > 60, "790 of 12,345 lies near the bottom, which is 0");
});

test("two versions have a bar each with their share, one version has none", () => {
  const fills = shown().el.byClass("aiaas-lane-fill");
  assert.deepEqual(fills.map((node) => node.attributes.style), ["width:90%", "width:10%"]);
  assert.equal(shown({ versions: PICTURE.versions.slice(0, 1) }).el.byClass("aiaas-lane-fill").length, 0);
});

test("an endpoint that does not answer says so in the place of the numbers", () => {
  const { el } = shown({ state: "unreachable", status: "the endpoint does not answer", tiles: [] });
  assert.equal(el.byClass("aiaas-status")[0].textContent, "the endpoint does not answer");
  assert.match(el.byRole("status")[0].textContent, /does not answer/);
});

test("what comes from an endpoint is text, never markup", () => {
  const evil = "<img src=x onerror=alert(1)>";
  const { el } = shown({ title: evil, tiles: [{ label: evil, value: evil }], versions: [1, 2].map(() => ({ name: evil, share: 0.5, rate: evil })) });
  assert.equal(el.all((node) => node.tag === "img").length, 0);
  assert.ok(el.textContent.includes(evil));
});

test("cleaning up ends the timer and the listening", () => {
  const { model, cleanUp } = shown();
  cleanUp();
  assert.equal(model.listeners.size, 0);
});
