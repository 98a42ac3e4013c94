// The job panel and the frame that all panels share, in Node.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Model, Node, module, shown as shownPicture } from "./dom_stub.mjs";

const PICTURE = {
  title: "Job 7 · churn",
  state: "running",
  status: "epoch 3 of 10 · loss 0.41",
  fraction: 0.25,
  phases: [
    { name: "packing", seconds: 0.4, detail: "", running: false },
    { name: "training", seconds: 12, detail: "", running: true },
  ],
  lanes: [
    { name: "worker 0", device: "core 0", state: "training", detail: "epoch 3, step 40", fraction: 0.4 },
    { name: "worker 1", device: "core 1", state: "lost", detail: "killed by signal 9", fraction: null },
  ],
  lanes_left_out: 0,
  curves: [
    { name: "loss", points: [[1, 0.9], [2, 0.6], [3, 0.41]] },
    { name: "val_loss", points: [[1, 1.0], [2, 0.7], [3, 0.5]] },
  ],
  stops: [],
  notices: ["Resumed from epoch 2."],
  error: "",
  hint: "To stop: interrupt the kernel.",
  final: false,
};

beforeEach(() => mock.timers.enable({ apis: ["setInterval", "Date"], now: 1_000_000 }));
afterEach(() => mock.timers.reset());

const shown = (changes = {}) => shownPicture({ ...PICTURE, ...changes });

test("progress is a progressbar with its values and its state in words", () => {
  const { el } = shown();
  const [bar] = el.byRole("progressbar");
  assert.equal(bar.attributes["aria-valuenow"], "25");
  assert.equal(bar.attributes["aria-valuemin"], "0");
  assert.equal(bar.attributes["aria-valuemax"], "100");
  assert.equal(bar.attributes["aria-valuetext"], PICTURE.status);
  assert.match(el.textContent, /running/);
  assert.match(el.textContent, /Resumed from epoch 2\./);
});

test("each worker has a row that says its device, state and detail", () => {
  const { el } = shown();
  const rows = el.byClass("aiaas-lane");
  assert.equal(rows.length, 2);
  assert.match(rows[1].textContent, /worker 1.*core 1.*lost.*killed by signal 9/);
  assert.equal(rows[0].children[0].attributes.scope, "row");
});

test("the loss is a line for each curve, dashed differently, with its numbers for a screen reader", () => {
  const { el } = shown();
  const lines = el.all((node) => node.tag === "polyline");
  assert.equal(lines.length, 2);
  assert.notEqual(lines[0].attributes["stroke-dasharray"], lines[1].attributes["stroke-dasharray"]);
  const [svg] = el.byRole("img");
  assert.match(svg.attributes["aria-label"], /loss from 0.9 to 0.41; val_loss from 1 to 0.5/);
});

test("curves stay inside the drawing, also when they are flat or have one point", () => {
  for (const points of [[[1, 5]], [[1, 5], [2, 5]], [[1, -3], [2, 1e9], [3, 0]]]) {
    for (const pair of module.paths([{ name: "loss", points }])[0].split(" ")) {
      const [x, y] = pair.split(",").map(Number);
      assert.ok(x >= 0 && x <= 300 && y >= 0 && y <= 72, pair);
    }
  }
});

test("the running phase counts on while nothing comes, the others stand", () => {
  const { el } = shown();
  mock.timers.tick(3000);
  const times = el.byClass("aiaas-time").map((node) => node.textContent);
  assert.deepEqual(times, ["0.4 s", "15 s"]);
  const [now] = el.byClass("aiaas-now");
  assert.equal(now.attributes["aria-current"], "step");
});

test("a new picture is drawn", () => {
  const { model, el } = shown();
  model.set({ fraction: 1, state: "succeeded", status: "done" });
  assert.equal(el.byRole("progressbar")[0].attributes["aria-valuenow"], "100");
  assert.match(el.byClass("aiaas-state")[0].textContent, /succeeded/);
});

test("a screen reader hears a new state at once and mere progress only every ten seconds", () => {
  const { model, el } = shown();
  const [said] = el.byRole("status");
  assert.equal(said.attributes["aria-live"], "polite");
  model.set({ status: "epoch 4" });
  assert.match(said.textContent, /epoch 3/);
  mock.timers.tick(10_000);
  model.set({ status: "epoch 5" });
  assert.match(said.textContent, /epoch 5/);
  model.set({ state: "stopping", status: "stopping" });
  assert.match(said.textContent, /stopping/);
});

test("what comes from a job is text, never markup", () => {
  const evil = "<img src=x onerror=alert(1)>";
  const { el } = shown({ title: evil, status: evil, error: evil, notices: [evil], stops: [{ label: evil, state: "running" }] });
  assert.equal(el.all((node) => node.tag === "img").length, 0);
  assert.ok(el.textContent.includes(evil));
});

test("a study shows its points and which one runs", () => {
  const { el } = shown({ stops: [{ label: "n=1", state: "done" }, { label: "n=2", state: "running" }] });
  assert.deepEqual(el.byClass("aiaas-stop").map((node) => node.attributes["aria-label"]), ["n=1: done", "n=2: running"]);
});

test("cleaning up ends the timer and the listening", () => {
  const { model, el, cleanUp } = shown();
  cleanUp();
  assert.equal(model.listeners.size, 0);
  mock.timers.tick(5000);
  assert.equal(el.byClass("aiaas-time")[1].textContent, "12 s");
});

test("a picture that has not come yet is waited for", () => {
  const model = new Model({});
  const el = new Node("div");
  module.default.render({ model, el });
  model.set(PICTURE);
  assert.match(el.textContent, /Job 7/);
});

test("durations read as people say them", () => {
  assert.deepEqual([0.44, 9.96, 75, 125, 3725].map(module.seconds), ["0.4 s", "10 s", "75 s", "2 min 05 s", "1 h 02 min"]);
});
