// Draws a scene into the panes of one canvas.

import { Glyphs } from "./glyphs.js";
import { buffer, formats, Program, Texture } from "./graphics.js";
import { planeMatrix, PLANES, turnedMatrix } from "./places.js";
import { LINES, SLICE } from "./shaders.js";

const IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const SAFE = [0.9, 0.94, 0.0, 0.62, 0.89, 0.45, 0.0, 0.26, 0.7];   // rows red, green, blue; columns of the axes: orange, yellow, blue
const STOPS = {
  gray: ["000000", "ffffff"],
  viridis: ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6dcd59", "b4de2c", "fde725"],
  magma: ["000004", "180f3e", "451077", "721f81", "9f2f7f", "cd4071", "f1605d", "fd9567", "feca8d", "fcfdbf"],
};

export class Painter {
  constructor(canvas, scene) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: true });
    if (!gl) throw new Error("no WebGL 2");
    Object.assign(this, { canvas, gl, scene, formats: formats(gl), textures: new Map() });
    this.slices = new Program(gl, SLICE);
    this.lines = new Program(gl, LINES);
    this.square = buffer(gl, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]));
    this.palettes = Object.fromEntries(Object.entries(STOPS).map(([name, stops]) => [name, this.ramp(stops)]));
    if (scene.glyphs) this.glyphs = new Glyphs(gl, scene.glyphs, scene.grid);
    if (scene.streamlines) this.tracks = this.joints(scene.streamlines.joints);
  }

  ramp(stops) {
    const { gl } = this, colours = stops.map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    const data = new Uint8Array(3 * 256);
    for (let i = 0; i < 256; i++) {
      const place = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2), share = place - low;
      for (let c = 0; c < 3; c++) data[3 * i + c] = Math.round((1 - share) * colours[low][c] + share * colours[low + 1][c]);
    }
    return new Texture(gl, gl.TEXTURE_2D, this.formats.colour, [256, 1], data);
  }

  texture(map) {
    if (!this.textures.has(map)) {
      const format = map.palette === "colour" ? this.formats.colour : this.formats.value;
      this.textures.set(map, new Texture(this.gl, this.gl.TEXTURE_3D, format, this.scene.coarse, map.data));
    }
    return this.textures.get(map);
  }

  // `panes` are { name, left, top, width, height } in CSS pixels of the canvas; `state` is what the controls say.
  draw(panes, state) {
    const { gl, canvas } = this, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const colours = { isStandard: !state.isSafe, axisColours: state.isSafe ? SAFE : IDENTITY };
    const ready = new Map(panes.map((pane) => [pane.name, this.ready(pane, state, ratio)]));
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    gl.depthFunc(gl.LEQUAL);
    for (const pane of panes) {
      const box = [pane.left, canvas.clientHeight - pane.top - pane.height, pane.width, pane.height].map((v) => Math.round(v * ratio));
      gl.viewport(...box);
      gl.scissor(...box);
      gl.clearColor(0, 0, 0, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      if (pane.name === "turned") this.drawTurned(pane, state, colours, ratio);
      else this.drawPlane(pane, state, colours, ratio, ready.get(pane.name));
    }
  }

  ready(pane, state, ratio) {
    if (!this.glyphs?.isPossible || !state.shows.glyphs || pane.name === "turned") return null;
    const plane = PLANES[pane.name], { grid } = this.scene;
    const pixels = ratio * state.views[pane.name].millimetre * Math.min(grid.zooms[plane.right], grid.zooms[plane.up]);
    return this.glyphs.prepare(plane, state.voxel[plane.axis], pixels);
  }

  drawPlane(pane, state, colours, ratio, ready) {
    const { scene } = this, plane = PLANES[pane.name], { centre, millimetre } = state.views[pane.name];
    const matrix = planeMatrix(plane, scene.size, centre, millimetre, pane.width, pane.height);
    const position = (state.voxel[plane.axis] + 0.5) * scene.grid.zooms[plane.axis];
    const isCovered = state.shows.glyphs || state.shows.peaks || state.shows.tracks;
    this.gl.disable(this.gl.DEPTH_TEST);
    this.drawSlice(plane, position, { matrix, state, colours, dim: isCovered ? 0.4 : 1, isHollow: false });
    const pixels = [pane.width * ratio, pane.height * ratio], thin = ratio * 1.1;
    const pitch = Math.min(scene.grid.zooms[plane.right], scene.grid.zooms[plane.up]);
    const flat = { matrix, pixels, colours, fade: 0, slab: [0, 0, 0, 0], half: 0 };
    if (state.shows.peaks && scene.peaks) this.drawSegments(this.sticks(plane, state.voxel[plane.axis], pitch), { ...flat, width: 1.5 * ratio });
    if (state.shows.tracks && scene.streamlines) {
      const slab = [0, 0, 0, position];
      slab[plane.axis] = 1;
      this.drawTracks({ ...flat, slab, half: Math.max(1.5, 0.6 * scene.grid.zooms[plane.axis]), width: thin });
    }
    if (ready) {
      const top = scene.glyphs.amount_high / 1.5, size = (0.5 * state.glyphSize * pitch) / top;
      this.glyphs.draw(ready, { plane, matrix, size, colours });
      this.gl.disable(this.gl.DEPTH_TEST);
    }
    if (state.shows.cross) this.drawSegments(this.cross(plane, state), { ...flat, width: 0.6 * ratio, fixed: [1, 0.88, 0.54, 1] });
  }

  drawTurned(pane, state, colours, ratio) {
    const { gl, scene } = this, { turn, millimetre } = state.views.turned;
    const matrix = turnedMatrix(turn, scene.size, millimetre, pane.width, pane.height);
    gl.enable(gl.DEPTH_TEST);
    if (state.shows.planes) for (const plane of Object.values(PLANES)) {
      const position = (state.voxel[plane.axis] + 0.5) * scene.grid.zooms[plane.axis];
      this.drawSlice(plane, position, { matrix, state, colours, dim: 0.75, isHollow: true });
    }
    const pixels = [pane.width * ratio, pane.height * ratio];
    if (scene.streamlines && state.shows.turnedTracks)
      this.drawTracks({ matrix, pixels, colours, fade: 0.65, slab: [0, 0, 0, 0], half: 0, width: 0.8 * ratio });
    gl.disable(gl.DEPTH_TEST);
  }

  drawSlice(plane, position, { matrix, state, colours, dim, isHollow }) {
    const { gl, scene } = this, origin = [0, 0, 0], along = [0, 0, 0], upward = [0, 0, 0];
    origin[plane.axis] = position;
    along[plane.right] = scene.size[plane.right];
    upward[plane.up] = scene.size[plane.up];
    const { map, other } = state.shown();
    const kind = other ? 2 : map.palette === "colour" ? 1 : 0;
    this.slices.use({
      matrix, origin, along, upward, extent: scene.extent, kind, dim, isHollow, brightness: state.brightness, ...colours,
      map: this.texture(map), other: this.texture(other ?? map), palette: this.palettes[map.palette] ?? this.palettes.gray,
    });
    this.slices.attribute("corner", this.square, 2);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  drawSegments(points, style) {
    const texture = this.joints(points);
    this.drawLines(texture, points.length / 4, style);
    this.gl.deleteTexture(texture.handle);
  }

  drawTracks(style) {
    this.drawLines(this.tracks, this.scene.streamlines.joints.length / 4, style);
  }

  // Points (four numbers each, the last telling whether a line goes on from here) as a texture, 2048 in a row.
  joints(points) {
    const rows = Math.max(1, Math.ceil(points.length / (4 * 2048))), padded = new Float32Array(rows * 4 * 2048);
    padded.set(points);
    return new Texture(this.gl, this.gl.TEXTURE_2D, this.formats.joint, [2048, rows], padded);
  }

  drawLines(points, count, style) {
    this.styled({ ...style, points });
    this.gl.drawArrays(this.gl.TRIANGLES, 0, 6 * Math.max(0, count - 1));
  }

  styled({ points, matrix, pixels, colours, fade, slab, half, width, fixed = [0, 0, 0, 0] }) {
    const rotation = this.scene.grid.rotation.flat();
    this.lines.use({ points, matrix, rotation, pixels, width, fade, half_slab: half, slab, fixed_colour: fixed, ...colours });
  }

  // Peaks of a slice as segments.
  sticks(plane, index, pitch) {
    const { grid, peaks } = this.scene, [nx, ny] = grid.shape, n = peaks.places.length, points = [];
    for (let i = 0; i < n; i++) {
      const place = peaks.places[i], voxel = [place % nx, Math.floor(place / nx) % ny, Math.floor(place / (nx * ny))];
      if (voxel[plane.axis] !== index) continue;
      const half = (0.62 * pitch * Math.min(1, peaks.amplitude[i])) / 127;
      const centre = voxel.map((value, axis) => (value + 0.5) * grid.zooms[axis]);
      const reach = [0, 1, 2].map((axis) => half * peaks.directions[axis * n + i]);
      points.push(...centre.map((value, axis) => value - reach[axis]), 1, ...centre.map((value, axis) => value + reach[axis]), 0);
    }
    return new Float32Array(points);
  }

  cross(plane, state) {
    const { grid, size } = this.scene, centre = state.voxel.map((value, axis) => (value + 0.5) * grid.zooms[axis]);
    return new Float32Array([plane.right, plane.up].flatMap((axis) => [0, size[axis]].flatMap((end) => {
      const point = centre.slice();
      point[axis] = end;
      return [...point, end ? 0 : 1];
    })));
  }
}
