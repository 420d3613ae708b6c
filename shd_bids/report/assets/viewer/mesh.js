// A sphere of triangles whose points come in opposite pairs, so that an even function is evaluated once for both.

// An icosahedron split `times` times: points (flat), faces (flat), six neighbours of each point in order around it
// (five and the first again at twelve points), and for each point the number of its half-sphere representative.
export function sphere(times) {
  let { points, faces } = icosahedron();
  for (let i = 0; i < times; i++) ({ points, faces } = split(points, faces));
  const half = pairs(points);
  return {
    points: new Float32Array(points.flat()),
    faces: new Uint16Array(faces.flat()),
    neighbours: new Uint16Array(rings(points.length, faces).flat()),
    half: new Uint16Array(half.number),
    axes: new Float32Array(half.axes.flat()),
  };
}

function icosahedron() {
  const golden = (1 + Math.sqrt(5)) / 2, points = [];
  for (let turn = 0; turn < 3; turn++)
    for (const s of [-1, 1]) for (const t of [-1, 1]) {
      const corner = [s, t * golden, 0];
      points.push(unit([0, 1, 2].map((axis) => corner[(axis + turn) % 3])));
    }
  const side = Math.min(...points.slice(1).map((point) => distance(point, points[0]))) + 1e-6;
  const near = (i, j) => distance(points[i], points[j]) < side;
  const faces = [];
  for (let i = 0; i < 12; i++) for (let j = i + 1; j < 12; j++) for (let k = j + 1; k < 12; k++)
    if (near(i, j) && near(j, k) && near(i, k)) faces.push(outward([i, j, k], points));
  return { points, faces };
}

function split(points, faces) {
  const all = points.slice(), known = new Map();
  const middle = (i, j) => {
    const key = i < j ? `${i},${j}` : `${j},${i}`;
    if (!known.has(key)) {
      known.set(key, all.length);
      all.push(unit(points[i].map((value, axis) => value + points[j][axis])));
    }
    return known.get(key);
  };
  const cut = faces.flatMap(([i, j, k]) => {
    const [ij, jk, ki] = [middle(i, j), middle(j, k), middle(k, i)];
    return [[i, ij, ki], [ij, j, jk], [ki, jk, k], [ij, jk, ki]];
  });
  return { points: all, faces: cut };
}

function pairs(points) {
  const axes = [], number = new Array(points.length), known = new Map();
  const key = (point) => point.map((value) => Math.round(value * 1e4) || 0).join();
  points.forEach((point, i) => {
    const opposite = known.get(key(point.map((value) => -value)));
    number[i] = opposite === undefined ? axes.length : opposite;
    if (opposite === undefined) axes.push(point);
    known.set(key(point), number[i]);
  });
  return { axes, number };
}

function rings(count, faces) {
  const next = Array.from({ length: count }, () => new Map());
  for (const [i, j, k] of faces) { next[i].set(j, k); next[j].set(k, i); next[k].set(i, j); }
  return next.map((around) => {
    const ring = [around.keys().next().value];
    while (ring.length < around.size) ring.push(around.get(ring[ring.length - 1]));
    return ring.length < 6 ? [...ring, ring[0]] : ring;
  });
}

function outward([i, j, k], points) {
  const [a, b, c] = [points[i], points[j], points[k]];
  const edge = (p, q) => p.map((value, axis) => value - q[axis]);
  const normal = cross(edge(b, a), edge(c, a));
  return normal.reduce((sum, value, axis) => sum + value * a[axis], 0) > 0 ? [i, j, k] : [i, k, j];
}

function cross([a, b, c], [d, e, f]) { return [b * f - c * e, c * d - a * f, a * e - b * d]; }
function distance(p, q) { return Math.hypot(...p.map((value, axis) => value - q[axis])); }
function unit(p) { const length = Math.hypot(...p); return p.map((value) => value / length); }
