// fODF surfaces: harmonics are summed by the graphics processor into a texture of amplitudes, from which a mesh is bent.

import { buffer, formats, Program, Texture } from "./graphics.js";
import { coefficientCount, harmonics } from "./harmonics.js";
import { sphere } from "./mesh.js";
import { AMPLITUDES, GLYPHS } from "./shaders.js";

const ROWS = 2048;

export class Glyphs {
  // `stored` has degree, places, amount (of degree 0), shape (coefficient after coefficient, eight bits) and scale.
  constructor(gl, stored, grid) {
    this.gl = gl;
    this.stored = stored;
    this.grid = grid;
    this.formats = formats(gl);
    this.isPossible = Boolean(gl.getExtension("EXT_color_buffer_float"));
    this.sums = new Program(gl, AMPLITUDES);
    this.surfaces = new Program(gl, GLYPHS);
    this.square = buffer(gl, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]));
    this.coefficients = this.upload();
    this.meshes = [2, 3].map((times) => this.mesh(times));
    this.target = gl.createFramebuffer();
    this.chosen = new Map();
  }

  upload() {
    const { gl, stored } = this, n = stored.places.length, width = coefficientCount(stored.degree) - 1;
    const blocks = Math.max(1, Math.ceil(n / ROWS));
    const shape = new Int8Array(blocks * width * ROWS), amount = new Float32Array(blocks * ROWS);
    for (let g = 0; g < n; g++) {
      const block = Math.floor(g / ROWS), row = g % ROWS;
      amount[row * blocks + block] = stored.amount[g];
      for (let i = 0; i < width; i++) shape[row * blocks * width + block * width + i] = stored.shape[i * n + g];
    }
    const flat = gl.TEXTURE_2D;
    return {
      width,
      shape: new Texture(gl, flat, this.formats.signed, [blocks * width, ROWS], shape),
      amount: new Texture(gl, flat, this.formats.float, [blocks, ROWS], amount),
      scale: new Texture(gl, flat, this.formats.float, [width, 1], new Float32Array(stored.scale)),
    };
  }

  mesh(times) {
    const { gl, formats } = this, ball = sphere(times), flat = gl.TEXTURE_2D, n = ball.points.length / 3;
    const ring = new Uint32Array(7 * n);
    for (let i = 0; i < n; i++) {
      ring.set(ball.neighbours.subarray(6 * i, 6 * i + 6), 7 * i);
      ring[7 * i + 6] = ball.half[i];
    }
    const axes = ball.axes.length / 3, width = coefficientCount(this.stored.degree);
    return {
      axes,
      count: ball.faces.length,
      points: buffer(gl, ball.points),
      faces: buffer(gl, ball.faces, gl.STATIC_DRAW, gl.ELEMENT_ARRAY_BUFFER),
      place: new Texture(gl, flat, formats.point, [n, 1], ball.points),
      ring: new Texture(gl, flat, formats.whole, [7, n], ring),
      basis: new Texture(gl, flat, formats.float, [width, axes], harmonics(ball.axes, this.stored.degree)),
    };
  }

  // Glyphs of a slice with their amplitudes, computed once until another slice of that axis is asked for.
  slice(axis, index, mesh) {
    const key = `${index},${mesh.axes}`, known = this.chosen.get(axis);
    if (known && known.key === key) return known;
    if (known) this.release(known);
    const found = this.compute(axis, index, mesh);
    this.chosen.set(axis, { ...found, key });
    return this.chosen.get(axis);
  }

  compute(axis, index, mesh) {
    const { gl, grid, stored } = this, [nx, ny] = grid.shape, list = [], centres = [];
    stored.places.forEach((place, number) => {
      const voxel = [place % nx, Math.floor(place / nx) % ny, Math.floor(place / (nx * ny))];
      if (voxel[axis] !== index) return;
      list.push(number);
      centres.push(...voxel.map((value, i) => (value + 0.5) * grid.zooms[i]));
    });
    const blocks = Math.max(1, Math.ceil(list.length / ROWS)), rows = Math.min(ROWS, Math.max(1, list.length));
    const padded = new Uint32Array(blocks * rows);
    padded.set(list);
    const numbers = new Texture(gl, gl.TEXTURE_2D, this.formats.whole, [rows, blocks], padded);
    const size = [mesh.axes * blocks, rows];
    const amplitudes = new Texture(gl, gl.TEXTURE_2D, this.formats.float, size, null);
    this.sum({ list: numbers, rows, count: list.length, mesh, size, amplitudes });
    gl.deleteTexture(numbers.handle);
    return { count: list.length, rows, amplitudes, centres: buffer(gl, new Float32Array(centres)) };
  }

  sum({ list, rows, count, mesh, size, amplitudes }) {
    const { gl, coefficients } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, amplitudes.handle, 0);
    gl.viewport(0, 0, ...size);
    gl.disable(gl.SCISSOR_TEST);
    gl.disable(gl.DEPTH_TEST);
    const { width, shape, amount, scale } = coefficients;
    this.sums.use({ basis: mesh.basis, scale, shape, amount, list, axes: mesh.axes, rows, count, width, stored_rows: ROWS });
    this.sums.attribute("corner", this.square, 2);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.enable(gl.SCISSOR_TEST);
  }

  release({ amplitudes, centres }) {
    this.gl.deleteTexture(amplitudes.handle);
    this.gl.deleteBuffer(centres);
  }

  // Computes what a slice needs before panes are drawn, for that changes the viewport; finer where voxels are large on the screen.
  prepare(plane, index, pixelsPerVoxel) {
    const mesh = this.meshes[pixelsPerVoxel > 26 ? 1 : 0];
    return { mesh, found: this.slice(plane.axis, index, mesh) };
  }

  draw({ mesh, found }, { plane, matrix, size, colours }) {
    if (!found.count) return;
    const { gl, grid } = this, towards = [0, 0, 0];
    towards[plane.axis] = plane.out;
    gl.enable(gl.DEPTH_TEST);
    this.surfaces.use({
      matrix, towards, size, rotation: grid.rotation.flat(), axes: mesh.axes, rows: found.rows, ...colours,
      amplitudes: found.amplitudes, ring: mesh.ring, points: mesh.place,
    });
    this.surfaces.attribute("point", mesh.points, 3);
    this.surfaces.attribute("centre", found.centres, 3, { each: 1 });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh.faces);
    gl.drawElementsInstanced(gl.TRIANGLES, mesh.count, gl.UNSIGNED_SHORT, 0, found.count);
  }
}
