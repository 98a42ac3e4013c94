import { barCell, drawCurves, drawTable, make, renderPanel } from "./panel.js";

/**
 * An endpoint while it is watched: rate, latency, batches, errors, and the share of each version.
 *
 * Draws from the model's `picture` (made by `views/endpoint_panel.py`) and nothing else.
 *
 * @typedef {{ label: string, value: string }} Tile
 * @typedef {{ name: string, share: number, rate: string }} VersionShare
 * @typedef {import("./panel.js").PanelPicture & { elapsed: string, tiles: Tile[], rates: import("./panel.js").Curve[],
 *   latencies: import("./panel.js").Curve[], versions: VersionShare[] }} EndpointPicture
 */

/** @param {Tile[]} tiles */
function drawTiles(tiles) {
  const list = make("div", "aiaas-tiles");
  for (const tile of tiles) {
    const box = make("div", "aiaas-tile");
    box.append(make("div", "aiaas-label", tile.label), make("div", "aiaas-value", tile.value));
    list.append(box);
  }
  return list;
}

/** @param {EndpointPicture} picture */
function body(picture) {
  const parts = [];
  if (picture.tiles.length) parts.push(drawTiles(picture.tiles));
  if (picture.rates.length) parts.push(drawCurves(picture.rates, { zero: true }));
  if (picture.latencies.length) parts.push(drawCurves(picture.latencies, { title: "latency", zero: true }));
  const rows = picture.versions.map((version) => [version.name, barCell(version.share), version.rate]);
  if (rows.length > 1) parts.push(drawTable("versions", rows));
  return parts;
}

/** @param {{ model: import("./panel.js").Model, el: HTMLElement }} view */
const render = (view) =>
  renderPanel(view, { label: "watched endpoint", body, line: (picture) => (picture.tiles.length ? picture.elapsed : picture.status) });

export default { render };
