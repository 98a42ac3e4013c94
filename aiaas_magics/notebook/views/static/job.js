import { barCell, drawCurves, drawTable, make, renderPanel, seconds } from "./panel.js";

/**
 * A job while it runs: what it is doing, how far it is, each worker, the loss so far.
 *
 * Draws from the model's `picture` (made by `views/job_picture.py`) and nothing else.
 *
 * @typedef {{ name: string, seconds: number, detail: string, running: boolean }} Phase
 * @typedef {{ name: string, device: string, state: string, detail: string, fraction: number | null }} Lane
 * @typedef {{ label: string, state: string }} Stop
 * @typedef {import("./panel.js").PanelPicture & { phases: Phase[], lanes: Lane[], lanes_left_out: number,
 *   curves: import("./panel.js").Curve[], stops: Stop[] }} JobPicture
 */

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

/** @param {JobPicture} picture */
function drawLanes(picture) {
  const rows = picture.lanes.map((lane) => [
    lane.name,
    lane.device,
    make("td", "aiaas-lane-state", lane.state),
    barCell(lane.fraction ?? (lane.state === "done" ? 1 : 0)),
    make("td", "aiaas-dim", lane.detail),
  ]);
  if (picture.lanes_left_out) rows.push([`and ${picture.lanes_left_out} more`]);
  return drawTable("workers", rows, { rowClass: (index) => `aiaas-lane aiaas-${picture.lanes[index]?.state ?? "more"}` });
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

/** @param {JobPicture} picture */
function body(picture) {
  const parts = [];
  if (picture.stops.length) parts.push(drawStops(picture.stops));
  if (picture.curves.length) parts.push(drawCurves(picture.curves));
  if (picture.lanes.length) parts.push(drawLanes(picture));
  return parts;
}

/** @param {JobPicture} picture */
const say = (picture) => `${picture.state}/${picture.phases.find((phase) => phase.running)?.name ?? ""}`;

/** @param {{ model: import("./panel.js").Model, el: HTMLElement }} view */
const render = (view) => renderPanel(view, { label: "training job", body, clock: (picture, extra) => drawPhases(picture.phases, extra), say });

export default { render };
