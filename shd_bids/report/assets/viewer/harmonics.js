// Even real spherical harmonics, basis of MRtrix3: degrees 0, 2, ..., orders -l..l, with the Condon-Shortley phase.

export function coefficientCount(degree) {
  return ((degree + 1) * (degree + 2)) / 2;
}

// Values at unit directions (n x 3, flat), as n rows of coefficientCount(degree) numbers.
export function harmonics(directions, degree) {
  const n = directions.length / 3, width = coefficientCount(degree);
  const basis = new Float32Array(n * width);
  for (let i = 0; i < n; i++) {
    const [x, y, z] = directions.subarray(3 * i, 3 * i + 3);
    let real = 1, imaginary = 0, first = 1;   // (x + iy)^m and the Legendre function of degree m without its sines
    for (let m = 0; m <= degree; m++) {
      let before = 0, now = first;
      for (let l = m; l <= degree; l++) {
        if (l > m) [before, now] = [now, (z * (2 * l - 1) * now - (l + m - 1) * before) / (l - m)];
        if (l % 2 === 0) {
          const centre = (l * (l + 1)) / 2;   // place of order 0
          const value = norm(l, m) * now * (m ? Math.SQRT2 : 1);
          basis[i * width + centre + m] = value * real;
          if (m) basis[i * width + centre - m] = value * imaginary;
        }
      }
      first *= -(2 * m + 1);
      [real, imaginary] = [real * x - imaginary * y, real * y + imaginary * x];
    }
  }
  return basis;
}

function norm(l, m) {
  let ratio = 1;
  for (let k = l - m + 1; k <= l + m; k++) ratio /= k;
  return Math.sqrt(((2 * l + 1) / (4 * Math.PI)) * ratio);
}
