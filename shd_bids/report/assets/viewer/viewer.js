// The interactive view of one series: three planes and a turning one, with controls, mouse, touch and keys.

import { button, choice, element, group, slider, tick } from "./controls.js";
import { Painter } from "./painter.js";
import { FROM_LEFT_FRONT, PLANES, toWorld, turned } from "./places.js";
import { number, readScene, valueAt } from "./scene.js";

const NAMES = { sagittal: "Sagittal", coronal: "Coronal", axial: "Axial", turned: "In three dimensions" };
const FLICKER_MS = 700;   // below three changes a second, the limit for people whom flashes make ill

export class Viewer {
  constructor(host, scene) {
    this.host = host;
    this.scene = scene;
    this.panes = new Map();
    this.state = this.start();
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.stage = element("div", { class: "stage" }, this.canvas, ...Object.keys(NAMES).map((name) => this.pane(name)));
    this.reading = element("p", { class: "reading", role: "status" });
    this.scale = element("p", { class: "scale" });
    host.append(this.controls(), this.stage, this.scale, this.reading);
    this.painter = new Painter(this.canvas, scene);
    this.fit();
    new ResizeObserver(() => { this.fit(); this.refresh(); }).observe(this.stage);
    this.refresh();
  }

  start() {
    const { scene } = this, middle = scene.size.map((length) => length / 2);
    const first = Math.max(0, scene.maps.findIndex((map) => map.name === "Fibre directions"));
    return {
      voxel: scene.grid.focus.slice(), brightness: 1, glyphSize: 1, isSafe: false, map: `m${first}`, side: "measured", large: "",
      shows: { glyphs: false, peaks: false, tracks: false, cross: true, planes: true, turnedTracks: true },
      views: {
        ...Object.fromEntries(Object.keys(PLANES).map((name) => [name, { centre: middle.slice(), zoom: 1, millimetre: 1 }])),
        turned: { turn: FROM_LEFT_FRONT, zoom: 1, millimetre: 1 },
      },
      shown: () => this.shown(),
    };
  }

  // Map under everything, and what it is compared with.
  shown() {
    const { map, side } = this.state, place = Number(map.slice(1));
    if (map[0] === "m") return { map: this.scene.maps[place] };
    const signal = this.scene.signals[place];
    return side === "difference" ? { map: signal.measured, other: signal.predicted } : { map: signal[side] };
  }

  controls() {
    const { scene, state } = this, set = (name) => (value) => { state[name] = value; this.refresh(); };
    const show = (name) => (value) => { state.shows[name] = value; this.refresh(); };
    const maps = [
      ...scene.maps.map((map, i) => [`m${i}`, map.name]),
      ...scene.signals.map((signal, i) => [`s${i}`, `Signal: ${signal.name}`]),
    ];
    const list = choice("Map ", maps, (value) => this.choose(value));
    list.querySelector("select").value = state.map;
    const colours = [["", "red, green, blue"], ["safe", "orange, yellow, blue (colour-blind safe)"]];
    const overlays = [
      ...(scene.glyphs ? [tick("fODF surfaces", false, show("glyphs"))] : []),
      ...(scene.peaks ? [tick("Peaks", false, show("peaks"))] : []),
      ...(scene.streamlines ? [tick("Streamlines", false, show("tracks"))] : []),
      tick("Cross-hair", true, show("cross")),
    ];
    this.signal = this.signalControls();
    return element("div", { class: "controls" },
      group("Map", list, slider("Brightness ", { min: 0.3, max: 3, step: 0.05, value: 1 }, set("brightness")), this.signal),
      group("Over the slices", ...overlays,
        ...(scene.glyphs ? [slider("Size of surfaces ", { min: 0.3, max: 3, step: 0.1, value: 1 }, set("glyphSize"))] : [])),
      group("In three dimensions", tick("Slices", true, show("planes")),
        ...(scene.streamlines ? [tick("Streamlines", true, show("turnedTracks"))] : [])),
      group("Colours", choice("Left-right, front-back, up-down ", colours, (value) => set("isSafe")(Boolean(value)))),
      button("Reset the view", () => this.reset()));
  }

  signalControls() {
    const { state } = this, name = `side-${this.host.id}`;
    this.sides = ["measured", "predicted", "difference"].map((side) => element("input",
      { type: "radio", name, value: side, checked: side === state.side, onchange: () => { this.flicker(false); this.setSide(side); } }));
    this.flickering = button("Flicker", () => this.flicker(!this.timer), { "aria-pressed": "false" });
    const row = element("div", { class: "signal", hidden: true, role: "group", "aria-label": "Signal" },
      ...this.sides.map((input) => element("label", {}, input, input.value)), this.flickering);
    return row;
  }

  choose(map) {
    this.flicker(false);
    this.state.map = map;
    this.signal.hidden = map[0] !== "s";
    this.refresh();
  }

  setSide(side) {
    this.state.side = side;
    for (const input of this.sides) input.checked = input.value === side;
    this.refresh();
  }

  flicker(isOn) {
    clearInterval(this.timer);
    this.timer = isOn ? setInterval(() => this.setSide(this.state.side === "measured" ? "predicted" : "measured"), FLICKER_MS) : 0;
    this.flickering.setAttribute("aria-pressed", String(Boolean(isOn)));
  }

  pane(name) {
    const plane = PLANES[name];
    const area = element("div", {
      class: "area", tabindex: "0", role: "application", "aria-label": `${NAMES[name]} view`,
      onpointerdown: (event) => this.press(event, name), onpointermove: (event) => this.drag(event, name),
      onpointerup: () => { this.pressed = null; }, onpointercancel: () => { this.pressed = null; },
      onkeydown: (event) => this.key(event, name), ondblclick: () => this.enlarge(name),
    }, ...(plane ? plane.letters.map((letter, i) => element("span", { class: `letter at${i}`, "aria-hidden": "true" }, letter)) : []));
    area.addEventListener("wheel", (event) => this.wheel(event, name), { passive: false });
    const made = { area, plane };
    const foot = element("div", { class: "foot" });
    if (plane) {
      made.bar = element("input", {
        type: "range", min: 0, max: this.scene.grid.shape[plane.axis] - 1, step: 1, "aria-label": `${NAMES[name]} slice`,
        oninput: () => { this.state.voxel[plane.axis] = Number(made.bar.value); this.refresh(); },
      });
      foot.append(made.bar);
    } else foot.append(element("span", {}, this.scene.streamlines
      ? `${this.scene.streamlines.count.toLocaleString("en")} streamlines; drag to turn`
      : "Drag to turn"));
    made.more = button("Enlarge", () => this.enlarge(name), { "aria-label": `Enlarge ${NAMES[name].toLowerCase()}`, "aria-pressed": "false" });
    foot.append(button("−", () => this.zoom(name, 1 / 1.3), { "aria-label": `Zoom out, ${NAMES[name].toLowerCase()}` }),
      button("+", () => this.zoom(name, 1.3), { "aria-label": `Zoom in, ${NAMES[name].toLowerCase()}` }), made.more);
    made.frame = element("div", { class: "pane" }, element("p", { class: "name" }, NAMES[name]), area, foot);
    this.panes.set(name, made);
    return made.frame;
  }

  enlarge(name) {
    this.state.large = this.state.large === name ? "" : name;
    for (const [other, { frame, more }] of this.panes) {
      frame.classList.toggle("large", other === this.state.large);
      more.setAttribute("aria-pressed", String(other === this.state.large));
    }
    this.fit();
    this.refresh();
  }

  // Pixels per millimetre of each pane at its zoom.
  fit() {
    const { size } = this.scene;
    for (const [name, { area, plane }] of this.panes) {
      const view = this.state.views[name], [width, height] = [area.clientWidth, area.clientHeight];
      const whole = plane ? [size[plane.right], size[plane.up]] : Array(2).fill(0.7 * Math.hypot(...size));
      view.millimetre = 0.96 * view.zoom * Math.min(width / whole[0], height / whole[1]);
    }
  }

  zoom(name, factor) {
    const view = this.state.views[name], plane = PLANES[name];
    view.zoom = Math.min(20, Math.max(0.5, view.zoom * factor));
    if (plane) view.centre = view.zoom > 1 ? this.point() : this.scene.size.map((length) => length / 2);
    this.fit();
    this.refresh();
  }

  reset() {
    const { shows, isSafe, map, glyphSize, brightness } = this.state;
    Object.assign(this.state, this.start(), { shows, isSafe, map, glyphSize, brightness });
    this.fit();
    this.refresh();
  }

  point() {
    return this.state.voxel.map((index, axis) => (index + 0.5) * this.scene.grid.zooms[axis]);
  }

  move(axis, by) {
    const last = this.scene.grid.shape[axis] - 1;
    this.state.voxel[axis] = Math.min(last, Math.max(0, this.state.voxel[axis] + by));
    this.refresh();
  }

  press(event, name) {
    event.currentTarget.focus({ preventScroll: true });
    event.currentTarget.setPointerCapture(event.pointerId);
    this.pressed = [event.clientX, event.clientY];
    this.drag(event, name);
  }

  drag(event, name) {
    if (!this.pressed) return;
    const plane = PLANES[name], view = this.state.views[name];
    const [dx, dy] = [event.clientX - this.pressed[0], event.clientY - this.pressed[1]];
    if (!plane) view.turn = turned(view.turn, dx / 120, dy / 120);
    else if (event.shiftKey) {
      view.centre[plane.right] -= dx / view.millimetre;
      view.centre[plane.up] += dy / view.millimetre;
    } else this.pointAt(event, plane, view);
    this.pressed = [event.clientX, event.clientY];
    this.refresh();
  }

  pointAt(event, plane, view) {
    const box = event.currentTarget.getBoundingClientRect(), { grid } = this.scene;
    const off = { [plane.right]: event.clientX - box.left - box.width / 2, [plane.up]: box.top + box.height / 2 - event.clientY };
    for (const axis of [plane.right, plane.up]) {
      const index = Math.floor((view.centre[axis] + off[axis] / view.millimetre) / grid.zooms[axis]);
      this.state.voxel[axis] = Math.min(grid.shape[axis] - 1, Math.max(0, index));
    }
  }

  // Only where the reader has clicked before: a page must scroll past the view.
  wheel(event, name) {
    if (document.activeElement !== event.currentTarget) return;
    event.preventDefault();
    const plane = PLANES[name], sign = Math.sign(event.deltaY);
    if (plane && !event.ctrlKey) this.move(plane.axis, -sign);
    else this.zoom(name, sign > 0 ? 1 / 1.15 : 1.15);
  }

  key(event, name) {
    const plane = PLANES[name], view = this.state.views[name];
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (arrows && plane) { this.move(plane.right, arrows[0]); this.move(plane.up, arrows[1]); }
    else if (arrows) { view.turn = turned(view.turn, 0.15 * arrows[0], -0.15 * arrows[1]); this.refresh(); }
    else if (plane && event.key === "PageUp") this.move(plane.axis, 1);
    else if (plane && event.key === "PageDown") this.move(plane.axis, -1);
    else if (event.key === "+" || event.key === "=") this.zoom(name, 1.3);
    else if (event.key === "-") this.zoom(name, 1 / 1.3);
    else if (event.key === "0") this.reset();
    else if (event.key === "f" && !this.signal.hidden) this.setSide(this.state.side === "measured" ? "predicted" : "measured");
    else return;
    event.preventDefault();
  }

  // Draws with the next picture of the screen, once however often it is asked.
  refresh() {
    if (this.waiting || !this.painter) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.paint(); });
  }

  paint() {
    const corner = this.canvas.getBoundingClientRect();
    const boxes = [...this.panes].map(([name, { area }]) => {
      const box = area.getBoundingClientRect();
      return { name, left: box.left - corner.left, top: box.top - corner.top, width: box.width, height: box.height };
    });
    this.painter.draw(boxes.filter((box) => box.width > 0 && box.height > 0), this.state);
    this.tell();
  }

  // Says in words what is seen.
  tell() {
    const { scene, state } = this, { map, other } = this.shown(), world = toWorld(scene.grid, this.point()).map((v) => v.toFixed(1));
    const unit = map.unit ? ` ${map.unit}` : "";
    const value = other ? `measured ${valueAt(scene, map, state.voxel)}, predicted ${valueAt(scene, other, state.voxel)}`
      : valueAt(scene, map, state.voxel);
    const side = state.map[0] === "s" && !other ? ` (${state.side})` : "";
    this.reading.textContent = `At x ${world[0]}, y ${world[1]}, z ${world[2]} mm: ${map.name}${side} ${value}.${this.peaksAt()}`;
    this.scale.textContent = map.palette === "colour" || other ? "" : `Dark to bright: ${number(map.low)} to ${number(map.low + (map.high - map.low) / state.brightness)}${unit}.`;
    if (other) this.scale.textContent = "Orange: measured more than predicted; blue: less.";
    for (const [name, { bar, plane, area }] of this.panes) if (plane) {
      bar.value = state.voxel[plane.axis];
      const text = `slice ${state.voxel[plane.axis] + 1} of ${scene.grid.shape[plane.axis]}, ${"xyz"[plane.axis]} = ${world[plane.axis]} mm`;
      bar.setAttribute("aria-valuetext", text);
      area.parentElement.querySelector(".name").textContent = `${NAMES[name]}: ${text}`;
    }
  }

  peaksAt() {
    const { peaks, grid } = this.scene;
    if (!peaks) return "";
    const [x, y, z] = this.state.voxel, place = x + grid.shape[0] * (y + grid.shape[1] * z), found = [];
    for (let i = 0; i < peaks.places.length && peaks.places[i] <= place; i++)
      if (peaks.places[i] === place) found.push(number(peaks.amplitude[i] * peaks.high));
    return found.length ? ` Peaks: ${found.join(", ")}.` : " No peak.";
  }
}

// Views start when they come near the screen; what stands in for one stays where a browser cannot draw it.
export function startViews() {
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { watch.unobserve(target); start(target); }
  }, { rootMargin: "400px" });
  document.querySelectorAll(".view").forEach((host) => watch.observe(host));
}

async function start(host) {
  const note = host.querySelector(".instead");
  try {
    const scene = await readScene([...host.querySelectorAll("script[type='application/json']")]);
    host.viewer = new Viewer(host, scene);
    note.hidden = true;
  } catch (error) {
    host.querySelectorAll(".controls, .stage, .scale, .reading").forEach((part) => part.remove());
    note.textContent = `This browser does not draw the view (${error.message}). The pictures below show the same slices.`;
  }
}

startViews();
