import { drawCurves, drawTable, make, renderPanel } from "./panel.js";

/**
 * A load run: each measurement with its numbers as they come, throughput by connections, latency by offered rate.
 *
 * Draws from the model's `picture` (made by `views/load_panel.py`) and nothing else.
 *
 * @typedef {{ label: string, state: string, cells: string[] }} Measurement
 * @typedef {import("./panel.js").PanelPicture & { head: string[], measurements: Measurement[],
 *   throughput: import("./panel.js").Curve[], latencies: import("./panel.js").Curve[] }} LoadPicture
 */

const MARKS = { done: "✓ ", running: "▶ ", waiting: "" };

/** @param {Measurement} one @param {string[]} head */
function rowOf(one, head) {
  const cells = head.slice(1).map((_, index) => make("td", "aiaas-number", one.cells[index] ?? ""));
  return [`${MARKS[one.state] ?? ""}${one.label}`, ...cells];
}

/** @param {LoadPicture} picture */
function body({ measurements, head, throughput, latencies }) {
  if (!measurements.length) return [];
  const rows = measurements.map((one) => rowOf(one, head));
  const charts = make("div", "aiaas-charts");
  if (throughput.length) charts.append(drawCurves(throughput, { title: "requests/s by connections", zero: true }));
  if (latencies.length) charts.append(drawCurves(latencies, { title: "latency by rate", zero: true }));
  return [drawTable("measurements", rows, { head, rowClass: (index) => `aiaas-${measurements[index].state}` }), charts];
}

/** @param {{ model: import("./panel.js").Model, el: HTMLElement }} view */
const render = (view) => renderPanel(view, { label: "load test", body, say: (picture) => picture.status });

export default { render };
