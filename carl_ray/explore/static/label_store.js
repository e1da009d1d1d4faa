// Own labels of one video: every change goes to this browser's storage at once and to the server soon after.

import { ApiError, request } from "./api.js";

const DELAY = 400; // ms after the last change
const RETRY = 2000; // ms between attempts while the server does not answer
const PREFIX = "carl-ray labels";

const corpusKey = (corpus) => `${PREFIX} ${corpus.corpus ?? corpus.title} `;
const plain = (intervals) => intervals.map(({ start, end, label }) => ({ start, end, label }));
const near = (a, b) => Math.abs(a - b) < 1e-3; // The server's file has times of four digits.
const same = (a, b) =>
  a.length === b.length && a.every((x, i) => x.label === b[i].label && near(x.start, b[i].start) && near(x.end, b[i].end));

/** Videos whose labels the server has not confirmed. */
export function draftsOf(corpus) {
  return corpus.videos.filter((video) => localStorage.getItem(corpusKey(corpus) + video.id) !== null);
}

/**
 * Labels with undo and autosave. Event "change": intervals, `state` or `conflict` have changed.
 *
 * state: "saved", "waiting" (soon sent), "saving", "offline" (kept here, sent again), "refused", "conflict",
 * "proposed" (shown only: nothing is kept before the first change), "read-only".
 */
export class LabelStore extends EventTarget {
  #undo = [];
  #redo = [];
  #timer = 0;
  #busy = false;
  #left = false;

  constructor(corpus, number, { intervals, version }) {
    super();
    this.corpus = corpus;
    this.number = number;
    this.key = corpusKey(corpus) + corpus.videos[number].id;
    this.intervals = plain(intervals);
    this.version = version ?? 0;
    this.state = corpus.writable ? "saved" : "read-only";
    this.message = "";
    this.conflict = null; // the server's { intervals, version } where another page has saved
    if (corpus.writable) this.#takeDraft();
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  change(intervals) {
    this.#undo.push(this.intervals);
    this.#redo = [];
    this.#set(intervals);
  }

  undo() {
    if (!this.canUndo) return;
    this.#redo.push(this.intervals);
    this.#set(this.#undo.pop());
  }

  redo() {
    if (!this.canRedo) return;
    this.#undo.push(this.intervals);
    this.#set(this.#redo.pop());
  }

  /** Show intervals that are kept only once they are changed or accepted (`change`). */
  propose(intervals) {
    clearTimeout(this.#timer); // A draft that waits to be sent stays a draft; undo shows it.
    this.#undo.push(this.intervals);
    this.intervals = plain(intervals);
    this.#tell("proposed");
  }

  /** Send what is left once, and no more: another store may take this video over. */
  leave() {
    this.#left = true;
    clearTimeout(this.#timer);
    if (this.state === "waiting" || this.state === "offline") this.#save();
  }

  /** End a conflict with these intervals: ours or the server's. */
  resolve(intervals) {
    this.version = this.conflict.version;
    this.conflict = null;
    this.change(intervals);
  }

  #takeDraft() {
    const text = localStorage.getItem(this.key);
    if (text === null) return;
    const draft = JSON.parse(text);
    this.draft = text;
    if (same(draft.intervals, this.intervals)) {
      localStorage.removeItem(this.key); // It was saved; the answer did not reach this browser.
      return;
    }
    const server = { intervals: this.intervals, version: this.version };
    this.#undo.push(this.intervals);
    this.intervals = draft.intervals;
    if (draft.version === this.version) {
      this.state = "waiting";
      this.#timer = setTimeout(() => this.#save(), 0);
    } else {
      this.conflict = server;
      this.state = "conflict";
    }
  }

  #set(intervals) {
    this.intervals = plain(intervals).sort((a, b) => a.start - b.start);
    this.#keep();
    if (this.conflict) this.#tell("conflict");
    else this.#sendSoon("waiting", DELAY);
  }

  #keep() {
    this.draft = JSON.stringify({ version: this.version, intervals: this.intervals });
    try {
      localStorage.setItem(this.key, this.draft);
    } catch {
      // The storage is full or forbidden; the server has what it confirms.
    }
  }

  #forget() {
    if (localStorage.getItem(this.key) === this.draft) localStorage.removeItem(this.key);
    document.dispatchEvent(new Event("labels-saved"));
  }

  #sendSoon(state, delay) {
    clearTimeout(this.#timer);
    if (!this.#left || delay === 0) this.#timer = setTimeout(() => this.#save(), delay);
    this.#tell(state);
  }

  async #save() {
    if (this.#busy) return; // Its end sends what has changed since.
    this.#busy = true;
    const sent = this.intervals;
    this.#tell("saving");
    try {
      const body = { intervals: sent, version: this.version };
      // Browsers refuse to keep larger requests alive than 64 KiB.
      const keepalive = JSON.stringify(body).length < 20000;
      this.version = (await request(`/api/videos/${this.number}/intervals`, { method: "PUT", body, keepalive })).version;
      this.#busy = false;
      this.corpus.videos[this.number].labelled = sent.length > 0;
      if (sent !== this.intervals) {
        this.#keep();
        this.#sendSoon("waiting", 0);
        return;
      }
      this.#forget();
      this.#tell("saved");
    } catch (error) {
      this.#busy = false;
      if (!(error instanceof ApiError)) throw error;
      this.message = error.message;
      if (error.status === 409 && same(error.answer.intervals, sent) && sent === this.intervals) {
        this.version = error.answer.version; // An earlier answer did not reach this browser.
        this.#forget();
        this.#tell("saved");
      } else if (error.status === 409) {
        this.conflict = { intervals: error.answer.intervals, version: error.answer.version };
        this.#tell("conflict");
      } else if ([0, 403].includes(error.status) || error.status >= 500) this.#sendSoon("offline", RETRY);
      else this.#tell("refused");
    }
  }

  #tell(state) {
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}
