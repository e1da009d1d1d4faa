// Elements, text and colours. Data enters the page as text nodes and properties, never as markup.

/**
 * Element with properties and children.
 * @param {string} tag Name and classes: "div.card".
 * @param {object} props Properties or attributes; "onclick" etc. are listeners, "css" sets style properties
 *   (the security policy forbids style attributes). null, undefined and false are left out.
 */
export function el(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElement(name), classes, props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), classes, props, children);
}

function fill(node, classes, props, children) {
  if (classes.length) node.classList.add(...classes);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "css") Object.entries(value).forEach(([name, text]) => node.style.setProperty(name, text));
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list" && node instanceof HTMLElement) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Select box with a label; `options` are [value, text] pairs. */
export function choice(label, options, value, onchange) {
  const select = el(
    "select",
    { "aria-label": label, onchange: () => onchange(select.value) },
    options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)),
  );
  return el("label.field", {}, el("span", {}, label), select);
}

export function button(text, onclick, props = {}) {
  return el("button", { type: "button", onclick, ...props }, text);
}

/** Note in the place of a view or panel that has failed; `again` is called by its button. */
export function failure(error, again) {
  return el("div.failure", { role: "alert" }, el("p", {}, error.message), again && button("Try again", again));
}

/** Minutes and seconds: 1:02.40. */
export function clock(seconds) {
  const hundredths = Math.round(Math.max(0, seconds) * 100);
  const rest = ((hundredths % 6000) / 100).toFixed(2).padStart(5, "0");
  return `${Math.floor(hundredths / 6000)}:${rest}`;
}

export const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

const known = new Map();

/** Fix the colours of phases, in the order of the library's actions. */
export function rememberPhases(actions) {
  for (const { phases } of actions) phases.forEach(phaseClass);
}

/** Classes of a phase: one of six colours, from the seventh phase on with a pattern. */
export function phaseClass(name) {
  if (!known.has(name)) known.set(name, known.size);
  const index = known.get(name);
  return ["phase", `phase-${index % 6}`, `pattern-${Math.min(3, Math.floor(index / 6))}`];
}

/** Image that a server may still be making: asked for again for a minute. */
export function lateImage(src, props = {}) {
  let tries = 0;
  const image = el("img", { loading: "lazy", decoding: "async", alt: "", ...props });
  image.addEventListener("error", () => {
    image.classList.add("missing");
    tries += 1;
    if (tries <= 8) setTimeout(() => image.isConnected && (image.src = `${src}?try=${tries}`), 600 * 1.5 ** tries);
  });
  image.addEventListener("load", () => image.classList.remove("missing"));
  image.src = src;
  return image;
}
