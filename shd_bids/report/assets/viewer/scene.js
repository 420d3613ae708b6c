// One series of the page: its pieces, unpacked.

import { summed, unpack } from "./unpack.js";

// Reads the data blocks that a view names; null where there are none.
export async function readScene(blocks) {
  const pieces = blocks.map((block) => JSON.parse(block.textContent));
  if (!pieces.length) return null;
  const { grid } = pieces[0];
  const scene = { grid, maps: [], signals: [], size: grid.shape.map((count, axis) => count * grid.zooms[axis]) };
  scene.coarse = grid.shape.map((count) => Math.ceil(count / grid.block));
  scene.extent = scene.coarse.map((count, axis) => count * grid.block * grid.zooms[axis]);
  for (const piece of pieces) {
    for (const map of piece.maps) scene.maps.push({ ...map, data: await unpack(map.data) });
    for (const signal of piece.signals ?? []) scene.signals.push({
      name: signal.name,
      measured: { ...signal.measured, data: await unpack(signal.measured.data) },
      predicted: { ...signal.predicted, data: await unpack(signal.predicted.data) },
    });
    if (piece.glyphs) scene.glyphs = await readGlyphs(piece.glyphs);
    if (piece.peaks) scene.peaks = await readPeaks(piece.peaks);
    if (piece.streamlines) scene.streamlines = await readStreamlines(piece.streamlines);
  }
  return scene;
}

async function readGlyphs(piece) {
  const amount = await unpack(piece.amount);
  return {
    ...piece,
    places: summed(await unpack(piece.places)),
    amount: Float32Array.from(amount, (level) => level ? ((level - 1) / 254) * piece.amount_high : 0),
    shape: await unpack(piece.shape),
  };
}

async function readPeaks(piece) {
  const high = piece.amplitude_high;
  return {
    places: summed(await unpack(piece.places)),
    directions: await unpack(piece.directions),
    amplitude: Float32Array.from(await unpack(piece.amplitude), (level) => ((level - 1) / 254)),
    high,
  };
}

// Points, four numbers each: mm, and 1 where the next belongs to the same streamline.
async function readStreamlines(piece) {
  const counts = await unpack(piece.counts), moves = await unpack(piece.moves), n = moves.length / 3;
  const joints = new Float32Array(4 * n);
  let first = 0;
  for (const count of counts) {
    for (let axis = 0; axis < 3; axis++) {
      let sum = 0;
      for (let i = first; i < first + count; i++) {
        sum += moves[axis * n + i];
        joints[4 * i + axis] = sum * piece.unit;
      }
    }
    for (let i = first; i < first + count - 1; i++) joints[4 * i + 3] = 1;
    first += count;
  }
  return { joints, count: counts.length };
}

// Value of a map at a voxel of the grid, in words.
export function valueAt(scene, map, voxel) {
  const [x, y, z] = voxel.map((index) => Math.floor(index / scene.grid.block)), [nx, ny] = scene.coarse;
  const place = x + nx * (y + ny * z);
  if (map.palette === "colour") {
    const parts = [0, 1, 2].map((i) => map.data[3 * place + i]);
    return parts.every((level) => level === 0) ? "outside" : parts.map((level) => ((level - 1) / 254).toFixed(2)).join(", ");
  }
  const level = map.data[place];
  if (level === 0) return "outside";
  return number(map.low + ((level - 1) / 254) * (map.high - map.low));
}

export function number(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/\.?0+$/, "");
}
