// Elements of the page around the canvas.

// An element with attributes and children; a function under "on..." listens.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function tick(label, isOn, change) {
  const box = element("input", { type: "checkbox", checked: isOn, onchange: () => change(box.checked) });
  return element("label", {}, box, label);
}

export function choice(label, options, change) {
  const list = element("select", { onchange: () => change(list.value) },
    ...options.map(([value, text]) => element("option", { value }, text)));
  return element("label", {}, label, list);
}

export function slider(label, { min, max, step, value }, change) {
  const bar = element("input", { type: "range", min, max, step, value, oninput: () => change(Number(bar.value)) });
  return element("label", {}, label, bar);
}

export function button(text, click, attributes = {}) {
  return element("button", { type: "button", onclick: click, ...attributes }, text);
}

export function group(title, ...children) {
  return element("fieldset", {}, element("legend", {}, title), ...children);
}
