// Keyboard: bindings of the present view, and the dialog that lists them.

import { button, el } from "./dom.js";

const HELP = [
  ["Everywhere", [["?", "this help"], ["/", "search the library"], ["Esc", "close; back to the library"]]],
  ["Library", [["← → ↑ ↓", "go to a video"], ["Enter", "open it"], ["x", "select it"], ["a", "align the selected"]]],
  [
    "Video and alignment",
    [
      ["Space", "play, pause"],
      ["← →  or  , .", "one frame"],
      ["Shift ← →", "ten frames"],
      ["Home, End", "first, last frame"],
      ["m", "similar moments"],
      ["l", "label"],
      ["x", "select this video"],
    ],
  ],
  [
    "Label",
    [
      ["i, o", "in and out: an interval from the one frame to the other"],
      ["↑ ↓", "choose an interval"],
      ["n", "name it"],
      ["[ ]", "move its start, its end here"],
      ["Delete", "delete it"],
      ["z, Shift z", "undo, redo"],
    ],
  ],
];

/** Call `bindings[key]` for keys pressed outside of fields, until the signal; Shift is part of the name: "Shift+z". */
export function bindKeys(bindings, signal) {
  document.addEventListener(
    "keydown",
    (event) => {
      const target = event.target;
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      if (document.querySelector("dialog[open]")) return;
      if (isTakenBy(target, event.key)) return;
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const action = bindings[event.shiftKey && key !== "?" ? `Shift+${key}` : key];
      if (!action) return;
      event.preventDefault();
      action(event);
    },
    { signal },
  );
}

/** Bindings of a view of frames; `show(frame)` takes the number of a frame beyond its ends for the nearest. */
export function frameKeys(toggle, current, show) {
  const step = (count) => () => show(current() + count);
  const single = { ArrowLeft: step(-1), ArrowRight: step(1), ",": step(-1), ".": step(1) };
  const ten = { "Shift+ArrowLeft": step(-10), "Shift+ArrowRight": step(10) };
  return { ...single, ...ten, " ": toggle, Home: () => show(0), End: () => show(Infinity) };
}

/** Whether the element that has the focus acts on a key itself. */
function isTakenBy(target, key) {
  if (key === "Escape") return false;
  const field = target.closest("input, select, textarea");
  if (field?.type === "range") return /^(Arrow|Page|Home|End)/.test(key);
  if (field?.type === "checkbox") return key === " ";
  return field !== null || (target.closest("button, a") !== null && (key === " " || key === "Enter"));
}

export function helpDialog() {
  const dialog = el(
    "dialog",
    { "aria-label": "Keyboard help" },
    el("h2", {}, "Keys"),
    HELP.map(([title, keys]) =>
      el(
        "section",
        {},
        el("h3", {}, title),
        el("dl", {}, keys.map(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)])),
      ),
    ),
    button("Close", () => dialog.close(), { autofocus: true }),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}
