/**
 * A job while it runs: what it is doing, how far it is, each worker, the loss so far.
 *
 * Draws from the model's `picture` (made by `views/picture.py`) and nothing else. Everything
 * that comes from the job is set as text, never as markup. Returns its own clean-up.
 *
 * @typedef {{ name: string, seconds: number, detail: string, running: boolean }} Phase
 * @typedef {{ name: string, device: string, state: string, detail: string, fraction: number | null }} Lane
 * @typedef {{ name: string, points: [number, number][] }} Curve
 * @typedef {{ label: string, state: string }} Stop
 * @typedef {{ title: string, state: string, status: string, fraction: number, phases: Phase[], lanes: Lane[],
 *   lanes_left_out: number, curves: Curve[], stops: Stop[], notices: string[], error: string, hint: string,
 *   final: boolean }} Picture
 * @typedef {{ get(name: string): any, on(name: string, f: () => void): void, off(name: string, f: () => void): void }} Model
 */

const SVG = "http://www.w3.org/2000/svg";
const SAY_EVERY_MS = 10_000; // a screen reader is not interrupted more often than this, but for a new state or phase
const TICK_MS = 1_000;
const WIDTH = 300;
const HEIGHT = 72;
const DASHES = ["", "5 3", "1.5 2.5", "8 3 2 3"];

/** @param {string} tag @param {string} name @param {string} [text] */
function make(tag, name, text) {
  const node = document.createElement(tag);
  node.setAttribute("class", name);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** @param {string} tag @param {Record<string, string>} attributes */
function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** A duration as `plots/text.py` says it. @param {number} s */
export function seconds(s) {
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 99.5) return `${Math.round(s)} s`;
  const whole = Math.round(s);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** @param {number} value */
export function number(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);
}

/** The curves scaled into the drawing's box. @param {Curve[]} curves */
export function paths(curves) {
  const all = curves.flatMap((curve) => curve.points);
  if (!all.length) return [];
  const xs = all.map((point) => point[0]);
  const ys = all.map((point) => point[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => (right > left ? 4 + ((value - left) / (right - left)) * (WIDTH - 8) : WIDTH / 2);
  const y = (value) => (high > low ? HEIGHT - 4 - ((value - low) / (high - low)) * (HEIGHT - 8) : HEIGHT / 2);
  return curves.map((curve) => curve.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" "));
}

/** @param {Curve[]} curves */
function drawCurves(curves) {
  const box = make("figure", "aiaas-curves");
  if (!curves.some((curve) => curve.points.length > 1)) return box;
  const said = curves.map((curve) => {
    const last = curve.points[curve.points.length - 1][1];
    return `${curve.name} from ${number(curve.points[0][1])} to ${number(last)}`;
  });
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": said.join("; ") });
  paths(curves).forEach((points, index) => {
    svg.append(shape("polyline", { points, class: `aiaas-line-${index}`, fill: "none", "stroke-dasharray": DASHES[index % DASHES.length] }));
    const [cx, cy] = points.split(" ").pop().split(",");
    svg.append(shape("circle", { cx, cy, r: "2.5", class: `aiaas-dot-${index}` }));
  });
  const caption = make("figcaption", "aiaas-keys");
  curves.forEach((curve, index) => {
    const last = curve.points[curve.points.length - 1][1];
    caption.append(make("span", `aiaas-key aiaas-key-${index}`, `${curve.name} ${number(last)}`));
  });
  box.append(svg, caption);
  return box;
}

/** @param {Phase[]} phases @param {number} extra seconds since the picture came */
function drawPhases(phases, extra) {
  const list = make("ol", "aiaas-phases");
  for (const phase of phases) {
    const item = make("li", phase.running ? "aiaas-phase aiaas-now" : "aiaas-phase");
    if (phase.running) item.setAttribute("aria-current", "step");
    item.append(make("span", "aiaas-name", phase.name), make("span", "aiaas-time", seconds(phase.seconds + (phase.running ? extra : 0))));
    if (phase.detail) item.setAttribute("title", phase.detail);
    list.append(item);
  }
  return list;
}

/** @param {Picture} picture */
function drawLanes(picture) {
  const table = make("table", "aiaas-lanes");
  table.setAttribute("aria-label", "workers");
  for (const lane of picture.lanes) {
    const row = make("tr", `aiaas-lane aiaas-${lane.state}`);
    const bar = make("td", "aiaas-lane-bar");
    const fill = make("div", "aiaas-lane-fill");
    fill.setAttribute("style", `width:${Math.round(100 * (lane.fraction ?? (lane.state === "done" ? 1 : 0)))}%`);
    bar.append(fill);
    const head = make("th", "aiaas-lane-name", lane.name);
    head.setAttribute("scope", "row");
    row.append(head, make("td", "", lane.device), make("td", "aiaas-lane-state", lane.state), bar, make("td", "aiaas-dim", lane.detail));
    table.append(row);
  }
  if (picture.lanes_left_out) {
    const row = make("tr", "aiaas-lane");
    row.append(make("td", "aiaas-dim", `and ${picture.lanes_left_out} more`));
    table.append(row);
  }
  return table;
}

/** @param {Stop[]} stops */
function drawStops(stops) {
  const list = make("ol", "aiaas-stops");
  const marks = { done: "✓ ", running: "▶ ", waiting: "" };
  for (const stop of stops) {
    const item = make("li", `aiaas-stop aiaas-${stop.state}`, `${marks[stop.state] ?? ""}${stop.label}`);
    item.setAttribute("aria-label", `${stop.label}: ${stop.state}`);
    list.append(item);
  }
  return list;
}

/** @param {{ model: Model, el: HTMLElement }} view */
function render({ model, el }) {
  const root = make("section", "aiaas-job");
  root.setAttribute("aria-label", "training job");
  const head = make("div", "aiaas-head");
  const title = make("strong", "aiaas-title");
  const state = make("span", "aiaas-state");
  head.append(title, state);
  const bar = make("div", "aiaas-bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  const fill = make("div", "aiaas-fill");
  bar.append(fill);
  const status = make("p", "aiaas-status");
  const said = make("p", "aiaas-said");
  said.setAttribute("role", "status");
  said.setAttribute("aria-live", "polite");
  const body = make("div", "aiaas-body");
  const phases = make("div", "aiaas-timeline");
  const foot = make("div", "aiaas-foot");
  root.append(head, bar, status, phases, body, foot, said);

  let came = Date.now();
  let sayAt = 0;
  let sayKey = "";

  const drawTime = () => {
    /** @type {Picture} */
    const picture = model.get("picture");
    phases.replaceChildren(drawPhases(picture.phases, Math.max(0, (Date.now() - came) / 1000)));
  };
  const say = (picture) => {
    const running = picture.phases.find((phase) => phase.running);
    const key = `${picture.state}/${running ? running.name : ""}`;
    if (key === sayKey && Date.now() < sayAt) return;
    sayKey = key;
    sayAt = Date.now() + SAY_EVERY_MS;
    said.textContent = `${picture.title}: ${picture.status}`;
  };
  const draw = () => {
    /** @type {Picture} */
    const picture = model.get("picture");
    if (!picture || !picture.title) return;
    came = Date.now();
    const percent = Math.round(picture.fraction * 100);
    title.textContent = picture.title;
    state.textContent = picture.state;
    state.setAttribute("class", `aiaas-state aiaas-${picture.state}`);
    bar.setAttribute("aria-valuenow", String(percent));
    bar.setAttribute("aria-valuetext", picture.status);
    bar.setAttribute("aria-label", picture.title);
    fill.setAttribute("style", `width:${percent}%`);
    status.textContent = picture.status;
    drawTime();
    const parts = [];
    if (picture.stops.length) parts.push(drawStops(picture.stops));
    if (picture.curves.length) parts.push(drawCurves(picture.curves));
    if (picture.lanes.length) parts.push(drawLanes(picture));
    body.replaceChildren(...parts);
    const notes = picture.notices.map((text) => make("p", "aiaas-note", text));
    if (picture.error) notes.push(make("p", "aiaas-error", picture.error));
    if (picture.hint) notes.push(make("p", "aiaas-dim", picture.hint));
    foot.replaceChildren(...notes);
    say(picture);
  };

  const timer = setInterval(() => {
    const picture = model.get("picture");
    if (picture && !picture.final) drawTime();
  }, TICK_MS);
  model.on("change:picture", draw);
  draw();
  el.append(root);
  return () => {
    clearInterval(timer);
    model.off("change:picture", draw);
  };
}

export default { render };
