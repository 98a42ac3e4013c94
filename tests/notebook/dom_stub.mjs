// A stub of the few DOM calls that the panels make, and of a widget's model.
import assert from "node:assert/strict";

export class Node {
  constructor(tag) {
    this.tag = tag;
    this.attributes = {};
    this.children = [];
    this.text = "";
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  append(...nodes) {
    this.children.push(...nodes);
  }
  replaceChildren(...nodes) {
    this.children = nodes;
  }
  set textContent(value) {
    this.text = String(value);
    this.children = [];
  }
  get textContent() {
    return this.text + this.children.map((child) => child.textContent).join(" ");
  }
  set innerHTML(_) {
    throw new Error("markup from strings is not allowed here");
  }
  all(test) {
    return [...(test(this) ? [this] : []), ...this.children.flatMap((child) => child.all(test))];
  }
  byClass(name) {
    return this.all((node) => (node.attributes.class ?? "").split(" ").includes(name));
  }
  byRole(role) {
    return this.all((node) => node.attributes.role === role);
  }
}

export class Model {
  constructor(picture) {
    this.picture = picture;
    this.listeners = new Set();
  }
  get() {
    return this.picture;
  }
  on(name, listener) {
    assert.equal(name, "change:picture");
    this.listeners.add(listener);
  }
  off(name, listener) {
    this.listeners.delete(listener);
  }
  set(changes) {
    this.picture = { ...this.picture, ...changes };
    for (const listener of this.listeners) listener();
  }
}

globalThis.document = { createElement: (tag) => new Node(tag), createElementNS: (_, tag) => new Node(tag) };

/** The module under test: the text that a widget sends to the browser. */
export const module = await import(new URL(process.env.PANEL_JS, import.meta.url));

export function shown(picture) {
  const model = new Model(picture);
  const el = new Node("div");
  const cleanUp = module.default.render({ model, el });
  return { model, el, cleanUp };
}
