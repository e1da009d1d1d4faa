// Panel of labels of one video: intervals drawn on a track with mouse or keys, named, saved as they change.

import { button, clock, el, phaseClass } from "./dom.js";
import { bindKeys } from "./keys.js";
import { LabelStore } from "./label_store.js";
import { endOf } from "./player.js";
import { takeProposal } from "./propagate.js";
import { bar, frameAt, toSpans } from "./ribbon.js";

const STATES = {
  saved: "✓ Saved",
  waiting: "… Not saved yet",
  saving: "… Saving",
  offline: "⚠ Kept in this browser, and sent again",
  refused: "⚠ Not saved; kept in this browser",
  conflict: "⚠ Another page has saved labels of this video since",
  proposed: "Proposal: not saved before you accept or change it",
  "read-only": "Another explore has these labels open: read only",
};

function chip(label) {
  const node = el("i.chip");
  node.classList.add(...phaseClass(label));
  return node;
}

export class LabelPanel {
  #chosen = -1; // index of an interval
  #in = null; // frame

  /** @param onchange Called when the intervals have changed. */
  constructor({ corpus, number, signal, announce }, answer, player, onchange) {
    Object.assign(this, { corpus, number, player, onchange, announce, times: answer.times });
    this.store = new LabelStore(corpus, number, { ...answer, intervals: answer.intervals.filter(({ origin }) => origin === "own") });
    this.others = answer.intervals.filter(({ origin }) => origin !== "own");
    this.track = el("div.track", { "aria-label": "Intervals; drag to draw one", role: "group" });
    this.state = el("p.state", { role: "status" });
    this.conflict = el("div");
    this.list = el("ol.intervals", { role: "list", "aria-label": "Intervals" });
    this.names = el("datalist", { id: "phase-names" });
    this.undo = button("Undo", () => this.store.undo());
    this.redo = button("Redo", () => this.store.redo());
    this.accept = button("Accept", () => this.store.change(this.store.intervals), { className: "primary" });
    const writable = corpus.writable;
    this.node = el(
      "section",
      { "aria-label": "Labels" },
      this.state,
      this.conflict,
      writable && el("p.note", {}, "Drag below the ribbon, or press i and o at the first and the last frame."),
      writable &&
        el(
          "div.controls",
          {},
          button("In", () => this.#setIn(), { "aria-keyshortcuts": "i" }),
          button("Out", () => this.#setOut(), { "aria-keyshortcuts": "o" }),
          this.undo,
          this.redo,
          this.accept,
          this.others.length > 0 && button(`Start with the ${this.others.length} of the manifest`, () => this.store.change(this.others)),
          el("a.action", { href: `#/propagate?sources=${number}` }, "Propagate"),
        ),
      this.names,
      this.list,
    );
    if (writable) {
      this.#listen(signal);
      signal.addEventListener("abort", () => this.store.leave());
      const proposal = takeProposal(number);
      if (proposal) this.store.propose(proposal);
    }
    this.store.addEventListener("change", () => this.#draw());
    this.#draw();
  }

  showFrame(frame) {
    this.cursor?.style.setProperty("left", `${(100 * (frame + 0.5)) / this.times.length}%`);
    if (this.#in === null) return;
    const [first, last] = [Math.min(this.#in, frame), Math.max(this.#in, frame)];
    this.#showDrawing(first, last + 1);
  }

  get #spans() {
    return toSpans(this.store.intervals, this.times);
  }

  #interval(first, stop, label) {
    return { start: this.times[first], end: endOf(this.times, stop - 1), label };
  }

  /** Store an interval; what lies below it gives way, since a frame has one label. */
  #put(first, stop, label, replaced = -1) {
    const kept = this.#spans.filter((_, index) => index !== replaced).flatMap((span) => [
      { ...span, stop: Math.min(span.stop, first) },
      { ...span, first: Math.max(span.first, stop) },
    ]);
    const parts = kept.filter((span) => span.stop > span.first);
    const intervals = parts.map((span) => this.#interval(span.first, span.stop, span.label));
    const own = this.#interval(first, stop, label);
    this.#chosen = parts.filter((span) => span.first < first).length;
    this.store.change([...intervals, own]);
  }

  #draw() {
    const { store } = this;
    const { state } = store;
    const total = this.times.length;
    const spans = this.#spans;
    this.#chosen = Math.min(this.#chosen, spans.length - 1);
    this.state.textContent = STATES[state] + (["offline", "refused"].includes(state) ? `: ${store.message}` : "");
    this.state.dataset.state = state;
    this.undo.disabled = !store.canUndo;
    this.redo.disabled = !store.canRedo;
    this.accept.hidden = state !== "proposed";
    this.cursor = el("div.cursor");
    this.drawing = el("div.drawing", { hidden: true });
    this.track.replaceChildren(
      ...spans.map((span, index) => {
        const text = `${span.label}, ${clock(this.times[span.first])} to ${clock(endOf(this.times, span.stop - 1))}`;
        const node = bar(span, total, { "aria-label": text, "aria-pressed": String(index === this.#chosen), onclick: () => this.#choose(index) });
        if (index === this.#chosen && this.corpus.writable) node.append(...this.#handles(index, span));
        return node;
      }),
      this.drawing,
      this.cursor,
    );
    this.#drawList(spans);
    this.#drawConflict();
    this.showFrame(this.player.frame);
    this.onchange();
  }

  #drawList(spans) {
    // A field that is being written in stays.
    if (this.list.contains(document.activeElement) && this.list.children.length === spans.length) return;
    const { writable } = this.corpus;
    this.list.replaceChildren(
      ...spans.map((span, index) =>
        el(
          "li",
          { "aria-current": index === this.#chosen ? "true" : null },
          chip(span.label),
          el("input", {
            value: span.label,
            list: "phase-names",
            disabled: !writable,
            "aria-label": "Name",
            onfocus: () => this.#choose(index),
            onchange: (event) => this.#rename(index, event.target),
            onkeydown: (event) => event.key === "Enter" && event.target.blur(),
          }),
          button(`${clock(this.times[span.first])} – ${clock(endOf(this.times, span.stop - 1))}`, () => this.player.show(span.first), {
            "aria-label": `Go to ${clock(this.times[span.first])}`,
          }),
          writable && button("✕", () => this.#remove(index), { "aria-label": `Delete ${span.label}` }),
        ),
      ),
    );
    if (!spans.length) this.list.append(el("li.note", {}, "No own labels yet."));
    const action = this.corpus.actions.find(({ label }) => label === this.corpus.videos[this.number].label);
    const names = [...new Set([...spans.map(({ label }) => label), ...(action?.phases ?? this.corpus.actions.flatMap(({ phases }) => phases))])];
    this.names.replaceChildren(...names.map((name) => el("option", { value: name })));
  }

  #drawConflict() {
    const { conflict, intervals } = this.store;
    const describe = (list) => list.map((x) => `${x.label} ${clock(x.start)}–${clock(x.end)}`).join(", ") || "none";
    this.conflict.replaceChildren(
      ...(conflict
        ? [
            el("p", {}, `Theirs: ${describe(conflict.intervals)}`),
            el("p", {}, `Yours: ${describe(intervals)}`),
            button("Take theirs", () => this.store.resolve(conflict.intervals)),
            button("Save yours over theirs", () => this.store.resolve(intervals)),
          ]
        : []),
    );
  }

  #choose(index) {
    if (index < 0 || index === this.#chosen) return;
    this.#chosen = index;
    this.#draw();
    [...this.list.children].forEach((item, place) => item.setAttribute("aria-current", String(place === index)));
  }

  #rename(index, field) {
    const label = field.value.trim();
    const span = this.#spans[index];
    if (!label || !span) field.value = span?.label ?? "";
    else if (label !== span.label) {
      this.store.change(this.store.intervals.map((interval, place) => (place === index ? { ...interval, label } : interval)));
    }
  }

  #remove(index) {
    if (index >= 0) this.store.change(this.store.intervals.filter((_, place) => place !== index));
  }

  #setIn() {
    this.#in = this.player.frame;
    this.showFrame(this.#in);
    this.announce(`In at frame ${this.#in}`);
  }

  #setOut() {
    if (this.#in === null) {
      this.announce("Press i at the first frame before.");
      return;
    }
    const [first, last] = [Math.min(this.#in, this.player.frame), Math.max(this.#in, this.player.frame)];
    this.#in = null;
    this.#add(first, last + 1);
  }

  /** New interval, named as the phase that follows the one before it; the name is selected to be written over. */
  #add(first, stop) {
    const before = this.#spans.filter((span) => span.first < first).at(-1)?.label;
    const names = [...this.names.children].map((option) => option.value);
    const action = this.corpus.actions.find(({ label }) => label === this.corpus.videos[this.number].label);
    const phases = action?.phases ?? names;
    this.#put(first, stop, phases[phases.indexOf(before) + 1] ?? phases[0] ?? "phase");
    this.#focusName();
  }

  #focusName() {
    const field = this.list.children[this.#chosen]?.querySelector("input");
    field?.focus();
    field?.select();
  }

  #showDrawing(first, stop) {
    const total = this.times.length;
    this.drawing.hidden = false;
    this.drawing.style.setProperty("left", `${(100 * first) / total}%`);
    this.drawing.style.setProperty("width", `${(100 * (stop - first)) / total}%`);
  }

  /** Follow a pointer on the track; `move(frame)` while it is down, `end(frame)` if it has moved. */
  #drag(event, move, end) {
    const begin = event.clientX;
    const frame = (moved) => frameAt(moved, this.track, this.times.length);
    const ending = new AbortController();
    const { signal } = ending;
    const moving = (moved) => Math.abs(moved.clientX - begin) >= 4 && move(frame(moved));
    const up = (moved) => {
      ending.abort();
      if (Math.abs(moved.clientX - begin) >= 4) end(frame(moved));
    };
    addEventListener("pointermove", moving, { signal });
    addEventListener("pointerup", up, { signal });
    addEventListener("pointercancel", () => (ending.abort(), this.#draw()), { signal });
  }

  #handles(index, span) {
    return ["start", "end"].map((side) => {
      const edges = (frame) => (side === "start" ? [Math.min(frame, span.stop - 1), span.stop] : [span.first, Math.max(frame + 1, span.first + 1)]);
      return el(`span.handle.${side}`, {
        onpointerdown: (event) => {
          event.stopPropagation();
          event.preventDefault();
          const move = (frame) => {
            this.player.show(frame);
            this.#showDrawing(...edges(frame));
          };
          this.#drag(event, move, (frame) => this.#put(...edges(frame), span.label, index));
        },
      });
    });
  }

  #listen(signal) {
    this.track.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const from = frameAt(event, this.track, this.times.length);
      const order = (frame) => [Math.min(from, frame), Math.max(from, frame) + 1];
      const move = (frame) => {
        this.player.show(frame);
        this.#showDrawing(...order(frame));
      };
      this.#drag(event, move, (frame) => this.#add(...order(frame)));
    });
    const onPanel = (action) => () => this.node.isConnected && action();
    const edge = (side) => {
      const span = this.#spans[this.#chosen];
      if (!span) return;
      const frame = this.player.frame;
      if (side === "start" && frame < span.stop) this.#put(frame, span.stop, span.label, this.#chosen);
      if (side === "end" && frame >= span.first) this.#put(span.first, frame + 1, span.label, this.#chosen);
    };
    const bindings = {
      i: () => this.#setIn(),
      o: () => this.#setOut(),
      n: () => this.#focusName(),
      z: () => this.store.undo(),
      "Shift+z": () => this.store.redo(),
      "[": () => edge("start"),
      "]": () => edge("end"),
      Delete: () => this.#remove(this.#chosen),
      Backspace: () => this.#remove(this.#chosen),
      ArrowUp: () => this.#choose(Math.max(0, this.#chosen - 1)),
      ArrowDown: () => this.#choose(Math.min(this.store.intervals.length - 1, this.#chosen + 1)),
    };
    bindKeys(Object.fromEntries(Object.entries(bindings).map(([key, action]) => [key, onPanel(action)])), signal);
  }
}
