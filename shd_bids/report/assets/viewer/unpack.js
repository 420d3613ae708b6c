// Arrays of the page: base64 of zlib, first axis fastest.

const KINDS = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array };

export async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new KINDS[packed.type](await new Response(stream).arrayBuffer());
}

// Whole numbers from their differences.
export function summed(steps) {
  const numbers = new Uint32Array(steps.length);
  let sum = 0;
  steps.forEach((step, i) => { sum += step; numbers[i] = sum; });
  return numbers;
}
