// Panel of similar moments: the best frame of each other video, as short loops.

import { address, request } from "./api.js";
import { choice, clock, el, failure, reducedMotion } from "./dom.js";

const COUNT = 24;
const AROUND = 0.75; // seconds of a loop before and after the moment
const MOST_PLAYING = 6;

/** Panel for video `number`; `find(frame)` fills it. */
export class Moments {
  #request = null;
  #frame = null;
  #shown = ""; // query of the moments in the list

  constructor({ corpus, number, params, signal, setParams, announce }) {
    Object.assign(this, { corpus, number, params, setParams, announce, signal });
    this.loops = new Loops(signal);
    this.note = el("p.note", { role: "status" }, "Pause at a frame to find similar moments.");
    this.list = el("ol.moments", { role: "list", "aria-label": "Similar moments" });
    const labels = corpus.actions.map((action) => action.label).filter((label) => label !== null);
    const splits = [...new Set(corpus.videos.map((video) => video.fields.split).filter(Boolean))].sort();
    this.node = el(
      "section",
      { "aria-label": "Similar moments" },
      el(
        "div.controls",
        {},
        labels.length > 1 && this.#filter("Label", "label", labels),
        splits.length > 1 && this.#filter("Split", "split", splits),
      ),
      this.note,
      this.list,
    );
  }

  #filter(title, key, values) {
    return choice(title, [["", "all"], ...values.map((value) => [value, value])], this.params.get(key) ?? "", (value) => {
      this.setParams({ [key]: value });
      this.find(this.#frame);
    });
  }

  async find(frame) {
    if (frame === null) return;
    this.#frame = frame;
    const query = { video: this.number, frame, count: COUNT, label: this.params.get("label"), split: this.params.get("split") };
    const path = address("/api/moments", query);
    if (path === this.#shown) return;
    this.#shown = path;
    this.#request?.abort();
    this.#request = new AbortController();
    const signal = AbortSignal.any([this.#request.signal, this.signal]);
    this.list.setAttribute("aria-busy", "true");
    try {
      this.#show(await request(path, { signal }));
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#shown = "";
      this.note.textContent = "";
      this.list.replaceChildren(el("li.wide", {}, failure(error, () => this.find(frame))));
    }
    this.list.removeAttribute("aria-busy");
  }

  #show({ moments, searched, seconds, query }) {
    this.loops.clear();
    const found = moments.length ? `${moments.length} moments like frame ${query.frame}` : "No moment in other videos passes these filters";
    this.note.textContent = `${found}, of ${searched.toLocaleString("en")} videos in ${Math.round(1000 * seconds)} ms.`;
    this.list.replaceChildren(...moments.map((moment) => this.#card(moment, query.frame)));
  }

  #card(moment, frame) {
    const name = this.corpus.videos[moment.video].id;
    const loop = this.loops.add(moment, name);
    const similarity = moment.similarity.toFixed(3);
    return el(
      "li.moment",
      { onmouseenter: () => this.loops.insist(loop), onfocusin: () => this.loops.insist(loop) },
      el(
        "a",
        { href: `#/video/${moment.video}?frame=${moment.frame}`, title: name },
        el("div.poster", {}, loop),
        el("span.name", {}, name),
        el("span.facts", {}, [clock(moment.time), moment.label].filter(Boolean).join(" · ")),
        el("span.facts", {}, `similarity ${similarity}`),
        el("span.meter", { css: { width: `${Math.max(0, Math.min(1, moment.similarity)) * 100}%` } }),
      ),
      el("a.action", { href: `#/align?videos=${this.number},${moment.video}&frame=${frame}`, "aria-label": `Align with ${name}` }, "Align"),
    );
  }
}

/** Short loops: the videos in sight are loaded, and the first few of them play; the one that is pointed at always does. */
class Loops {
  #all = new Map(); // video element → its moment
  #seen = new Set();

  constructor(signal) {
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) this.#sight(target, isIntersecting);
      this.#play();
    });
    signal.addEventListener("abort", () => this.clear());
  }

  add(moment, name) {
    const video = el("video", { muted: true, playsInline: true, preload: "auto", tabIndex: -1, "aria-label": `Loop of ${name}` });
    video.poster = `/api/videos/${moment.video}/poster`;
    this.#all.set(video, moment);
    video.addEventListener("loadedmetadata", () => (video.currentTime = moment.time + 0.001));
    const turn = () => {
      const begin = Math.max(0, moment.time - AROUND);
      if (!video.paused && (video.currentTime > moment.time + AROUND || video.currentTime < begin - 0.1)) video.currentTime = begin;
    };
    video.addEventListener("timeupdate", turn);
    video.addEventListener("error", () => video.hasAttribute("src") && video.replaceWith(el("p.note", {}, "It cannot be played.")));
    video.addEventListener("ended", () => {
      video.currentTime = Math.max(0, moment.time - AROUND);
      this.#start(video);
    });
    this.observer.observe(video);
    return video;
  }

  /** Play this loop, whatever else plays. */
  insist(video) {
    this.#sight(video, true);
    this.#start(video);
  }

  clear() {
    this.observer.disconnect();
    for (const video of this.#all.keys()) this.#sight(video, false);
    this.#all.clear();
  }

  #sight(video, isSeen) {
    if (isSeen === this.#seen.has(video)) return;
    if (isSeen) {
      this.#seen.add(video);
      video.src = `/media/${this.#all.get(video).video}`;
    } else {
      this.#seen.delete(video);
      video.pause();
      video.removeAttribute("src");
      video.load();
    }
  }

  #play() {
    const inOrder = [...this.#all.keys()].filter((video) => this.#seen.has(video));
    inOrder.slice(MOST_PLAYING).forEach((video) => video.pause());
    if (!reducedMotion.matches) inOrder.slice(0, MOST_PLAYING).forEach((video) => this.#start(video));
  }

  #start(video) {
    if (video.paused) video.play().catch(() => {});
  }
}
