// Programs for the graphics processor.

const HUE = `
uniform mat3 axisColours;
uniform bool isStandard;
vec3 hue(vec3 direction) {
  vec3 size = abs(direction);
  if (isStandard) return size / max(max(size.x, size.y), max(size.z, 1e-6));
  return axisColours * (size * size / max(dot(size, size), 1e-6));
}
`;

export const SLICE = {
  vertex: `#version 300 es
in vec2 corner;
uniform mat4 matrix;
uniform vec3 origin, along, upward, extent;
out vec3 place;
void main() {
  vec3 point = origin + corner.x * along + corner.y * upward;
  place = point / extent;
  gl_Position = matrix * vec4(point, 1.0);
}`,
  fragment: `#version 300 es
precision highp float;
precision highp sampler3D;
uniform sampler3D map, other;
uniform sampler2D palette;
uniform int kind;              // 0 one value through a palette, 1 a colour, 2 the difference of two maps
uniform float brightness, dim;
uniform bool isHollow;
${HUE}
in vec3 place;
out vec4 colour;
void main() {
  if (any(lessThan(place, vec3(0.0))) || any(greaterThan(place, vec3(1.0)))) discard;
  vec4 found = texture(map, place);
  vec3 shown;
  if (kind == 1) {
    vec3 size = found.rgb;
    shown = brightness * (isStandard ? size : hue(size) * max(size.r, max(size.g, size.b)));
  } else if (kind == 2) {
    float change = 4.0 * brightness * (found.r - texture(other, place).r);
    shown = mix(vec3(0.93), change > 0.0 ? vec3(0.79, 0.33, 0.0) : vec3(0.0, 0.35, 0.62), clamp(abs(change), 0.0, 1.0));
    if (found.r == 0.0) shown = vec3(0.0);
  } else {
    float level = clamp(brightness * (found.r * 255.0 - 1.0) / 254.0, 0.0, 1.0);
    shown = found.r == 0.0 ? vec3(0.0) : texture(palette, vec2((level * 255.0 + 0.5) / 256.0, 0.5)).rgb;
  }
  if (isHollow && max(shown.r, max(shown.g, shown.b)) < 0.1) discard;   // dark parts would hide what is behind them
  colour = vec4(dim * shown, 1.0);
}`,
};

// Each segment between a point and the next is two triangles; points come from a texture, whose fourth part is 1 where they go on.
export const LINES = {
  vertex: `#version 300 es
uniform highp sampler2D points;
uniform mat4 matrix;
uniform mat3 rotation;
uniform vec2 pixels;
uniform float width, fade, half_slab;
uniform vec4 slab, fixed_colour;   // axis and position of the slice; a colour where its last part is not zero
${HUE}
out vec3 shade;
vec4 point(int number) { return texelFetch(points, ivec2(number % 2048, number / 2048), 0); }
void main() {
  int segment = gl_VertexID / 6, corner = gl_VertexID % 6;
  vec4 first = point(segment);
  vec3 start = first.xyz, end = point(segment + 1).xyz;
  float away = abs(dot(slab.xyz, 0.5 * (start + end)) - slab.w);
  if (first.w < 0.5 || (half_slab > 0.0 && away > half_slab)) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
  vec4 from = matrix * vec4(start, 1.0), to = matrix * vec4(end, 1.0);
  vec2 along = (to.xy - from.xy) * pixels;
  along = length(along) > 1e-4 ? normalize(along) : vec2(1.0, 0.0);
  vec4 here = corner == 0 || corner == 2 || corner == 4 ? from : to;
  float side = corner == 2 || corner == 3 || corner == 4 ? 1.0 : -1.0;
  here.xy += side * width * vec2(-along.y, along.x) / pixels;
  gl_Position = here;
  float light = 1.0 - fade * clamp(0.5 + 0.5 * here.z, 0.0, 1.0);
  shade = fixed_colour.a > 0.0 ? fixed_colour.rgb : light * hue(rotation * (end - start));
}`,
  fragment: `#version 300 es
precision highp float;
in vec3 shade;
out vec4 colour;
void main() { colour = vec4(shade, 1.0); }`,
};

// fODF amplitudes: one column for each axis of the mesh (and block of glyphs), one row for each glyph.
export const AMPLITUDES = {
  vertex: `#version 300 es
in vec2 corner;
void main() { gl_Position = vec4(2.0 * corner - 1.0, 0.0, 1.0); }`,
  fragment: `#version 300 es
precision highp float;
precision highp int;
precision highp isampler2D;
precision highp usampler2D;
uniform sampler2D basis, scale;
uniform isampler2D shape;
uniform sampler2D amount;
uniform usampler2D list;
uniform int axes, rows, count, width, stored_rows;
out vec4 amplitude;
void main() {
  ivec2 pixel = ivec2(gl_FragCoord.xy);
  int index = (pixel.x / axes) * rows + pixel.y;
  amplitude = vec4(0.0);
  if (index >= count) return;
  int glyph = int(texelFetch(list, ivec2(index % rows, index / rows), 0).r);
  int axis = pixel.x % axes, left = (glyph / stored_rows) * width, row = glyph % stored_rows;
  float sum = texelFetch(basis, ivec2(0, axis), 0).r;
  for (int i = 0; i < width; i++)
    sum += texelFetch(basis, ivec2(i + 1, axis), 0).r * texelFetch(scale, ivec2(i, 0), 0).r
      * float(texelFetch(shape, ivec2(left + i, row), 0).r);
  amplitude.r = max(0.0, sum) * texelFetch(amount, ivec2(glyph / stored_rows, row), 0).r;
}`,
};

export const GLYPHS = {
  vertex: `#version 300 es
precision highp int;
precision highp usampler2D;
in vec3 point;
in vec3 centre;
uniform mat4 matrix;
uniform mat3 rotation;
uniform vec3 towards;
uniform float size;
uniform int axes, rows;
uniform sampler2D amplitudes;
uniform usampler2D ring;           // six neighbours and the axis of each point of the mesh
uniform sampler2D points;
${HUE}
out vec3 shade;
float radius(int number) {
  int axis = int(texelFetch(ring, ivec2(6, number), 0).r);
  return size * texelFetch(amplitudes, ivec2((gl_InstanceID / rows) * axes + axis, gl_InstanceID % rows), 0).r;
}
vec3 surface(int number) { return radius(number) * texelFetch(points, ivec2(number, 0), 0).rgb; }
void main() {
  vec3 here = surface(gl_VertexID), normal = vec3(0.0);
  vec3 before = surface(int(texelFetch(ring, ivec2(5, gl_VertexID), 0).r)) - here;
  for (int k = 0; k < 6; k++) {
    vec3 next = surface(int(texelFetch(ring, ivec2(k, gl_VertexID), 0).r)) - here;
    normal += cross(before, next);
    before = next;
  }
  normal = length(normal) > 0.0 ? normalize(normal) : point;
  float light = 0.4 + 0.6 * abs(dot(normal * rotation, towards));
  shade = light * hue(point);
  gl_Position = matrix * vec4(centre + here * rotation, 1.0);
}`,
  fragment: `#version 300 es
precision highp float;
in vec3 shade;
out vec4 colour;
void main() { colour = vec4(shade, 1.0); }`,
};
