// Where things are: planes, panes, and the turning of the view in three dimensions. Millimetres from the corner of the grid.

// Axis across the plane, along its horizontal, along its vertical; sign of the axis that points out of the page.
export const PLANES = {
  sagittal: { axis: 0, right: 1, up: 2, out: 1, letters: ["P", "A", "I", "S"] },
  coronal: { axis: 1, right: 0, up: 2, out: -1, letters: ["L", "R", "I", "S"] },
  axial: { axis: 2, right: 0, up: 1, out: 1, letters: ["L", "R", "P", "A"] },
};

// Column-major matrix from view mm to clip space of a plane pane; depth spans the whole grid.
export function planeMatrix(plane, size, centre, millimetre, width, height) {
  const matrix = new Float32Array(16);
  const { axis, right, up, out } = plane;
  const [sx, sy] = [2 * millimetre / width, 2 * millimetre / height];
  const depth = 1 / Math.max(...size, 1);
  matrix[4 * right] = sx;
  matrix[4 * up + 1] = sy;
  matrix[4 * axis + 2] = -out * depth;
  matrix[12] = -sx * centre[right];
  matrix[13] = -sy * centre[up];
  matrix[14] = out * depth * centre[axis];
  matrix[15] = 1;
  return matrix;
}

// The same for a turned view, orthographic, about the middle of the grid.
export function turnedMatrix(turn, size, millimetre, width, height) {
  const depth = 1 / Math.hypot(...size);
  const scale = [2 * millimetre / width, 2 * millimetre / height, -2 * depth];
  const middle = size.map((length) => length / 2), matrix = new Float32Array(16);
  for (let row = 0; row < 3; row++) {
    let shift = 0;
    for (let column = 0; column < 3; column++) {
      matrix[4 * column + row] = scale[row] * turn[3 * row + column];
      shift += turn[3 * row + column] * middle[column];
    }
    matrix[12 + row] = -scale[row] * shift;
  }
  matrix[15] = 1;
  return matrix;
}

// A turn by angles about the vertical and the horizontal of the screen, after another; rows are the axes of the screen.
export function turned(turn, aboutUp, aboutRight) {
  const [cu, su] = [Math.cos(aboutUp), Math.sin(aboutUp)], [cr, sr] = [Math.cos(aboutRight), Math.sin(aboutRight)];
  const step = [cu, 0, su, sr * su, cr, -sr * cu, -cr * su, sr, cr * cu];
  const result = new Array(9).fill(0);
  for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) for (let k = 0; k < 3; k++)
    result[3 * i + j] += step[3 * i + k] * turn[3 * k + j];
  return result;
}

export const FROM_LEFT_FRONT = turned([1, 0, 0, 0, 0, 1, 0, -1, 0], 0.6, 0.35);

// World position, mm, of a point of the grid.
export function toWorld(grid, point) {
  return [0, 1, 2].map((row) => grid.world[row].slice(0, 3).reduce((sum, value, i) => sum + value * point[i], grid.world[row][3]));
}
