/**
 * What all panels share: the frame (title, state, bar, status, notes), charts, and numbers in words.
 *
 * A view's own module imports from here; Python joins the two into one script (`views/widget.py`). Everything that
 * comes from a job or a server is set as text, never as markup.
 *
 * @typedef {{ name: string, points: [number, number][], unit?: string }} Curve
 * @typedef {{ title: string, state: string, status: string, fraction: number, notices: string[], error: string,
 *   hint: string, final: boolean }} PanelPicture
 * @typedef {{ get(name: string): any, on(name: string, f: () => void): void, off(name: string, f: () => void): void }} Model
 */

const SVG = "http://www.w3.org/2000/svg";
const SAY_EVERY_MS = 10_000; // a screen reader is not interrupted more often than this, but for a new state or phase
const TICK_MS = 1_000;
const WIDTH = 300;
const HEIGHT = 72;
const DASHES = ["", "5 3", "1.5 2.5", "8 3 2 3"];

/** @param {string} tag @param {string} name @param {string} [text] */
export function make(tag, name, text) {
  const node = document.createElement(tag);
  node.setAttribute("class", name);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** @param {string} tag @param {Record<string, string>} attributes */
export function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** A duration as `plots/text_twins.py` says it. @param {number} s */
export function seconds(s) {
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 99.5) return `${Math.round(s)} s`;
  const whole = Math.round(s);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** Four digits below a thousand, whole numbers with separators above. @param {number} value */
export function number(value) {
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) < 1_000 ? String(Number(value.toPrecision(4))) : Math.round(value).toLocaleString("en-US");
}

/** @param {Curve} curve @param {number} index */
const quantity = (curve, index) => `${number(curve.points.at(index)[1])}${curve.unit ? ` ${curve.unit}` : ""}`;

/** The curves scaled into the drawing's box. @param {Curve[]} curves @param {{ zero?: boolean }} [options] `zero`: the box begins at 0 */
export function paths(curves, { zero = false } = {}) {
  const all = curves.flatMap((curve) => curve.points);
  if (!all.length) return [];
  const xs = all.map((point) => point[0]);
  const ys = all.map((point) => point[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), zero ? Math.min(0, ...ys) : Math.min(...ys), Math.max(...ys)];
  const x = (value) => (right > left ? 4 + ((value - left) / (right - left)) * (WIDTH - 8) : WIDTH / 2);
  const y = (value) => (high > low ? HEIGHT - 4 - ((value - low) / (high - low)) * (HEIGHT - 8) : HEIGHT / 2);
  return curves.map((curve) => curve.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" "));
}

/** @param {Curve[]} curves @param {{ title?: string, zero?: boolean }} [options] */
export function drawCurves(curves, { title = "", zero = false } = {}) {
  const box = make("figure", "aiaas-curves");
  if (!curves.some((curve) => curve.points.length > 1)) return box;
  const said = curves.map((curve) => `${curve.name} from ${quantity(curve, 0)} to ${quantity(curve, -1)}`);
  const label = `${title ? `${title}: ` : ""}${said.join("; ")}`;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  paths(curves, { zero }).forEach((points, index) => {
    if (!points) return;
    svg.append(shape("polyline", { points, class: `aiaas-line-${index}`, fill: "none", "stroke-dasharray": DASHES[index % DASHES.length] }));
    const [cx, cy] = points.split(" ").pop().split(",");
    svg.append(shape("circle", { cx, cy, r: "2.5", class: `aiaas-dot-${index}` }));
  });
  const caption = make("figcaption", "aiaas-keys");
  if (title) caption.append(make("span", "aiaas-dim", title));
  curves.forEach((curve, index) => {
    if (curve.points.length) caption.append(make("span", `aiaas-key aiaas-key-${index}`, `${curve.name} ${quantity(curve, -1)}`));
  });
  box.append(svg, caption);
  return box;
}

/**
 * Rows of text; a cell may be a node.
 * @param {string} label @param {(string | HTMLElement)[][]} rows the first cell names its row
 * @param {{ head?: string[], rowClass?: (index: number) => string }} [options]
 */
export function drawTable(label, rows, { head = [], rowClass = () => "" } = {}) {
  const table = make("table", "aiaas-table");
  table.setAttribute("aria-label", label);
  if (head.length) {
    const top = make("tr", "aiaas-dim");
    for (const name of head) {
      const cell = make("th", "", name);
      cell.setAttribute("scope", "col");
      top.append(cell);
    }
    table.append(top);
  }
  rows.forEach(([first, ...others], index) => {
    const row = make("tr", `aiaas-row ${rowClass(index)}`);
    const name = make("th", "", /** @type {string} */ (first));
    name.setAttribute("scope", "row");
    row.append(name, ...others.map((cell) => (typeof cell === "string" ? make("td", "", cell) : cell)));
    table.append(row);
  });
  return table;
}

/** A cell with a bar. @param {number} fraction */
export function barCell(fraction) {
  const cell = make("td", "aiaas-lane-bar");
  const fill = make("div", "aiaas-lane-fill");
  fill.setAttribute("style", `width:${Math.round(100 * fraction)}%`);
  cell.append(fill);
  return cell;
}

/**
 * Draws the frame, and `body` in it at each new picture; returns the clean-up.
 * @param {{ model: Model, el: HTMLElement }} view
 * @param {{ label: string, body: (picture: any) => HTMLElement[], clock?: (picture: any, extra: number) => HTMLElement,
 *   line?: (picture: any) => string, say?: (picture: any) => string }} parts
 *   `clock` is drawn again every second, with the seconds since the picture came; `line` is the line below the bar;
 *   a screen reader hears the status at once when `say` changes
 */
export function renderPanel({ model, el }, { label, body, clock, line = (picture) => picture.status, say = (picture) => picture.state }) {
  const root = make("section", "aiaas-panel");
  root.setAttribute("aria-label", label);
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
  const clockBox = make("div", "aiaas-clock");
  const bodyBox = make("div", "aiaas-body");
  const foot = make("div", "aiaas-foot");
  root.append(head, bar, status, clockBox, bodyBox, foot, said);

  let came = Date.now();
  let sayAt = 0;
  let sayKey = "";

  const drawClock = (picture) => {
    if (clock) clockBox.replaceChildren(clock(picture, Math.max(0, (Date.now() - came) / 1000)));
  };
  const speak = (picture) => {
    const key = say(picture);
    if (key === sayKey && Date.now() < sayAt) return;
    sayKey = key;
    sayAt = Date.now() + SAY_EVERY_MS;
    said.textContent = `${picture.title}: ${picture.status}`;
  };
  const draw = () => {
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
    status.textContent = line(picture);
    drawClock(picture);
    bodyBox.replaceChildren(...body(picture));
    const notes = picture.notices.map((text) => make("p", "aiaas-note", text));
    if (picture.error) notes.push(make("p", "aiaas-error", picture.error));
    if (picture.hint) notes.push(make("p", "aiaas-dim", picture.hint));
    foot.replaceChildren(...notes);
    speak(picture);
  };

  const timer = setInterval(() => {
    const picture = model.get("picture");
    if (picture && picture.title && !picture.final) drawClock(picture);
  }, TICK_MS);
  model.on("change:picture", draw);
  draw();
  el.append(root);
  return () => {
    clearInterval(timer);
    model.off("change:picture", draw);
  };
}
