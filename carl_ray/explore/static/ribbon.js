// Ribbon of a video: colours of its embeddings along time, intervals below, and a scrubber.

import { clock, el, lateImage, phaseClass } from "./dom.js";
import { endOf, firstWhere } from "./player.js";

/** First frame whose middle is not before a time, as labels are read (carl_ray.data.label_spans). */
function boundary(times, seconds) {
  return firstWhere(times.length, (frame) => (times[frame] + endOf(times, frame)) / 2 >= seconds);
}

/** Intervals in seconds as spans of frames [first, stop). */
export function toSpans(intervals, times) {
  return intervals
    .map((interval) => ({ ...interval, first: boundary(times, interval.start), stop: boundary(times, interval.end) }))
    .filter((span) => span.stop > span.first);
}

/** Bar of an interval of `total` frames; text beside the colour, hatched where confidence is low. */
export function bar(span, total, props = {}) {
  const sure = span.confidence === null || span.confidence === undefined ? "" : ` ${span.confidence.toFixed(2)}`;
  const node = el(
    `${props.onclick ? "button" : "div"}.span`,
    {
      type: props.onclick ? "button" : undefined,
      title: `${span.label}${sure}`,
      css: { left: `${(100 * span.first) / total}%`, width: `${(100 * (span.stop - span.first)) / total}%` },
      ...props,
    },
    el("span", {}, `${span.label}${sure}`),
  );
  node.classList.add(...phaseClass(span.label));
  if (span.confidence !== null && span.confidence !== undefined && span.confidence < 0.6) node.classList.add("unsure");
  return node;
}

/** Number of the frame below a pointer. */
export function frameAt(event, node, total) {
  const { left, width } = node.getBoundingClientRect();
  return Math.max(0, Math.min(total - 1, Math.floor(((event.clientX - left) / width) * total)));
}

/** Scrubber of a video; `onseek(frame)` is called for every frame that the pointer goes to. */
export class Ribbon {
  constructor(number, times, onseek) {
    this.times = times;
    this.cursor = el("div.cursor");
    this.bars = el("div.bars", { "aria-hidden": "true" });
    this.node = el(
      "div.ribbon",
      { role: "slider", tabIndex: 0, "aria-label": "Frame", "aria-valuemin": 0, "aria-valuemax": times.length - 1 },
      lateImage(`/api/videos/${number}/ribbon`, { className: "stripe", draggable: false }),
      this.bars,
      this.cursor,
    );
    const seek = (event) => onseek(frameAt(event, this.node, times.length));
    this.node.addEventListener("pointerdown", (event) => {
      this.node.setPointerCapture(event.pointerId);
      seek(event);
    });
    this.node.addEventListener("pointermove", (event) => event.buttons && seek(event));
    this.show(0);
  }

  show(frame) {
    this.cursor.style.setProperty("left", `${(100 * (frame + 0.5)) / this.times.length}%`);
    this.node.setAttribute("aria-valuenow", frame);
    this.node.setAttribute("aria-valuetext", `frame ${frame}, ${clock(this.times[frame] ?? 0)}`);
  }

  setIntervals(intervals) {
    this.bars.replaceChildren(...toSpans(intervals, this.times).map((span) => bar(span, this.times.length)));
  }
}
