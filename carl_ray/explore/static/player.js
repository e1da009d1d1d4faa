// A video shown frame by frame.

import { el } from "./dom.js";

/** Number of the frame whose time is nearest. */
export function nearestFrame(times, seconds) {
  const after = firstWhere(times.length, (frame) => times[frame] >= seconds);
  if (after === 0) return 0;
  if (after === times.length) return times.length - 1;
  return seconds - times[after - 1] <= times[after] - seconds ? after - 1 : after;
}

/** The first of `count` frames from which on a condition holds; `count` where it never does. */
export function firstWhere(count, holds) {
  let [low, high] = [0, count];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Time at which frame number `frame` ends, in seconds; that of the last one is as long as the one before. */
export function endOf(times, frame) {
  if (frame + 1 < times.length) return times[frame + 1];
  const gap = times.length > 1 ? times[frame] - times[frame - 1] : 0.04;
  return times[frame] + gap;
}

/**
 * Player of one video. Events: "frame" (another frame), "settled" (paused, and this frame is shown), "play", "pause",
 * "failed" (the video cannot be played).
 */
export class FramePlayer extends EventTarget {
  #wanted = null; // frame to seek to when the present seek is done

  constructor(number, times, label) {
    super();
    this.times = times;
    this.frame = 0;
    this.video = el("video", { src: `/media/${number}`, muted: true, playsInline: true, preload: "auto", "aria-label": label });
    const { video } = this;
    video.addEventListener("loadedmetadata", () => this.#seek());
    video.addEventListener("seeked", () => this.#seeked());
    video.addEventListener("error", () => this.#tell("failed"));
    video.addEventListener("play", () => this.#tell("play"));
    video.addEventListener("pause", () => this.#paused());
    if ("requestVideoFrameCallback" in video) this.#follow();
    else video.addEventListener("timeupdate", () => this.#presented(video.currentTime - 0.01));
  }

  get paused() {
    return this.video.paused;
  }

  /** Pause at a frame. Of calls during a seek the last one counts. */
  show(frame) {
    const { video } = this;
    this.#wanted = Math.max(0, Math.min(this.times.length - 1, Math.round(frame)));
    this.#moved(this.#wanted);
    if (!video.paused) video.pause();
    if (video.error) this.#tell("settled");
    else if (video.readyState >= 1 && !video.seeking) this.#seek();
  }

  step(count) {
    this.show(this.frame + count);
  }

  toggle() {
    if (!this.video.paused) this.video.pause();
    else this.play();
  }

  async play() {
    if (this.video.ended || this.frame >= this.times.length - 1) this.video.currentTime = this.times[0];
    await this.video.play().catch(() => {}); // The error event tells of it.
  }

  /** Let go of the file and its connection. */
  close() {
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }

  #tell(name) {
    this.dispatchEvent(new Event(name));
  }

  #moved(frame) {
    if (frame === this.frame) return;
    this.frame = frame;
    this.#tell("frame");
  }

  #seek() {
    if (this.#wanted === null) return;
    const frame = this.#wanted;
    this.#wanted = null;
    // The middle of the frame: rounding at its bounds cannot show its neighbour.
    this.video.currentTime = (this.times[frame] + endOf(this.times, frame)) / 2;
  }

  #seeked() {
    if (this.#wanted !== null) this.#seek();
    else if (this.video.paused) this.#tell("settled");
  }

  #paused() {
    this.#tell("pause");
    // Playing stops at any time: show the middle of the frame that was seen last.
    if (this.#wanted === null && !this.video.seeking) this.show(this.frame);
  }

  #follow() {
    this.video.requestVideoFrameCallback((_, { mediaTime }) => {
      this.#presented(mediaTime);
      this.#follow();
    });
  }

  #presented(seconds) {
    const frame = nearestFrame(this.times, seconds);
    this.video.dataset.frame = frame;
    if (!this.video.paused) this.#moved(frame);
  }
}
