// WebGL 2 in the few words that the view needs.

export class Program {
  constructor(gl, source) {
    this.gl = gl;
    this.handle = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, source.vertex], [gl.FRAGMENT_SHADER, source.fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(this.handle, shader);
    }
    gl.linkProgram(this.handle);
    if (!gl.getProgramParameter(this.handle, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(this.handle));
    this.uniforms = new Map();
    for (let i = 0; i < gl.getProgramParameter(this.handle, gl.ACTIVE_UNIFORMS); i++) {
      const { name, type } = gl.getActiveUniform(this.handle, i);
      this.uniforms.set(name, { type, place: gl.getUniformLocation(this.handle, name) });
    }
  }

  // Numbers, lists, matrices (flat; 3 x 3 by rows), and textures, which take units in the order given.
  use(values) {
    const { gl } = this;
    gl.useProgram(this.handle);
    let unit = 0;
    for (const [name, value] of Object.entries(values)) {
      const uniform = this.uniforms.get(name);
      if (!uniform) continue;
      const { type, place } = uniform;
      if (value instanceof Texture) {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(value.target, value.handle);
        gl.uniform1i(place, unit++);
      } else if (type === gl.FLOAT_MAT4) gl.uniformMatrix4fv(place, false, value);
      else if (type === gl.FLOAT_MAT3) gl.uniformMatrix3fv(place, true, value);
      else if (type === gl.FLOAT) gl.uniform1f(place, value);
      else if (type === gl.FLOAT_VEC2) gl.uniform2fv(place, value);
      else if (type === gl.FLOAT_VEC3) gl.uniform3fv(place, value);
      else if (type === gl.FLOAT_VEC4) gl.uniform4fv(place, value);
      else gl.uniform1i(place, value);
    }
  }

  // Numbers from a buffer; `each` is 1 where they go on with every instance.
  attribute(name, buffer, size, { stride = 0, offset = 0, each = 0, type = this.gl.FLOAT } = {}) {
    const { gl } = this, place = gl.getAttribLocation(this.handle, name);
    if (place < 0) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, false, stride, offset);
    gl.vertexAttribDivisor(place, each);
  }
}

export class Texture {
  constructor(gl, target, format, size, data) {
    this.target = target;
    this.handle = gl.createTexture();
    const [inside, outside, type] = format;
    gl.bindTexture(target, this.handle);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    if (target === gl.TEXTURE_3D) gl.texImage3D(target, 0, inside, ...size, 0, outside, type, data);
    else gl.texImage2D(target, 0, inside, ...size, 0, outside, type, data);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, name, gl.NEAREST);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) gl.texParameteri(target, name, gl.CLAMP_TO_EDGE);
  }
}

export function formats(gl) {
  return {
    value: [gl.R8, gl.RED, gl.UNSIGNED_BYTE],
    colour: [gl.RGB8, gl.RGB, gl.UNSIGNED_BYTE],
    float: [gl.R32F, gl.RED, gl.FLOAT],
    point: [gl.RGB32F, gl.RGB, gl.FLOAT],
    joint: [gl.RGBA32F, gl.RGBA, gl.FLOAT],
    signed: [gl.R8I, gl.RED_INTEGER, gl.BYTE],
    whole: [gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT],
  };
}

export function buffer(gl, data, use = gl.STATIC_DRAW, target = gl.ARRAY_BUFFER) {
  const handle = gl.createBuffer();
  gl.bindBuffer(target, handle);
  gl.bufferData(target, data, use);
  return handle;
}
