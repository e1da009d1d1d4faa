// View of propagation: labels of some videos are proposed for others, the least certain first.

import { request } from "./api.js";
import { button, choice, el, failure, lateImage } from "./dom.js";
import { bar } from "./ribbon.js";

let proposals = null; // answer of the last propagation, kept in this browser until it is worked off
const corrections = new Map(); // video number → intervals that the label panel shows as a proposal

/** Proposal that the label panel of this video begins with; once. */
export function takeProposal(number) {
  const intervals = corrections.get(number);
  corrections.delete(number);
  return intervals;
}

const key = (corpus) => `carl-ray proposals ${corpus.corpus}`;

function keep(corpus) {
  try {
    if (proposals.videos.length) localStorage.setItem(key(corpus), JSON.stringify(proposals));
    else localStorage.removeItem(key(corpus));
  } catch {
    localStorage.removeItem(key(corpus)); // The storage is full: old ones would be worse than none.
  }
}

export function show({ main, corpus, params, signal, setParams, announce }) {
  const numbers = (key) => (params.get(key) ?? "").split(",").filter((text) => corpus.videos[text]).map(Number);
  const [sources, targets] = [numbers("sources"), numbers("targets")];
  const results = el("div");
  const run = button("Propagate", propagate, { className: "primary", disabled: !corpus.writable });
  const options = (list, all) => [["", all], ...(list.length ? [["some", list.length === 1 ? corpus.videos[list[0]].id : `${list.length} videos`]] : [])];
  let from = sources.length ? "some" : "";
  let to = targets.length ? "some" : "";
  main.replaceChildren(
    el("h1", {}, "Propagate labels"),
    el("p.note", {}, "Labels go to videos of the same action along their alignment. Nothing is saved before you accept it."),
    el(
      "div.controls",
      {},
      choice("From", options(sources, "all labelled videos"), from, (value) => (from = value)),
      choice("To", options(targets, "all others of the same action"), to, (value) => (to = value)),
      run,
    ),
    results,
  );
  proposals ??= JSON.parse(localStorage.getItem(key(corpus)));
  // What was corrected leaves the list once it is saved; numbers change where videos are added.
  if (proposals)
    proposals.videos = proposals.videos.filter(
      ({ number, id, corrected }) => corpus.videos[number]?.id === id && !(corrected && corpus.videos[number].labelled),
    );
  if (proposals) draw();
  else if (!corpus.videos.some((video) => video.labelled)) results.append(el("p.note", {}, "No video has labels yet: label one first."));

  async function propagate() {
    run.disabled = true;
    results.replaceChildren(el("p.note", { role: "status" }, "Aligning …"));
    const body = {};
    if (from) body.sources = sources;
    if (to) body.targets = targets;
    setParams({ sources: from && sources.join(","), targets: to && targets.join(",") });
    try {
      proposals = await request("/api/propagation", { method: "POST", body, signal });
      for (const proposal of proposals.videos) proposal.id = corpus.videos[proposal.number].id;
      keep(corpus);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") results.replaceChildren(failure(error));
    }
    run.disabled = false;
  }

  function draw() {
    const { videos, control } = proposals;
    const shown = [
      el("p.note", { role: "status" }, videos.length ? `${videos.length} proposals, the least certain first.` : "No proposal is left."),
      controlNote(control),
      videos.length > 1 && acceptMany(),
      el("ol.proposals", { role: "list", "aria-label": "Proposals" }, videos.map(row)),
    ];
    results.replaceChildren(...shown.filter(Boolean)); // which would print null and false
  }

  /** Accept the more certain ones at once. */
  function acceptMany() {
    const levels = [0.95, 0.9, 0.8, 0.7, 0.6, 0].map((level) => [String(level), level ? `${level} or more` : "any"]);
    let least = 0.9;
    const accept = button("Accept these", async () => {
      accept.disabled = true;
      // Labels of one's own are replaced one by one only.
      const chosen = proposals.videos.filter((p) => p.confidence >= least && p.intervals.length && !corpus.videos[p.number].labelled);
      for (const proposal of chosen) {
        try {
          await save(proposal);
        } catch (error) {
          draw();
          results.prepend(failure(error));
          return;
        }
        corpus.videos[proposal.number].labelled = true;
        forget(proposal);
      }
      draw();
    });
    return el("div.controls", {}, choice("Confidence", levels, String(least), (value) => (least = Number(value))), accept);
  }

  function row(proposal) {
    const { number, intervals, confidence } = proposal;
    const video = corpus.videos[number];
    const item = el("li");
    const spans = el("div.bars");
    const total = Math.max(...intervals.map(({ end }) => end), video.seconds ?? 0);
    spans.append(...intervals.map((x) => bar({ ...x, first: x.start, stop: x.end }, total || 1)));
    const accept = button(video.labelled ? "Replace its labels" : "Accept", async () => {
      accept.disabled = true;
      try {
        await save(proposal);
      } catch (error) {
        item.append(failure(error));
        accept.disabled = false;
        return;
      }
      video.labelled = intervals.length > 0;
      leave(proposal, item, `${video.id}: accepted`);
    });
    item.append(
      el("div.head", {}, el("a.name", { href: `#/video/${number}?panel=label` }, video.id), el("span.facts", {}, `confidence ${confidence.toFixed(2)}`)),
      el("div.ribbon", {}, lateImage(`/api/videos/${number}/ribbon`, { className: "stripe" }), spans),
      el(
        "div.controls",
        {},
        accept,
        button("Correct", () => {
          corrections.set(number, intervals);
          proposal.corrected = true;
          keep(corpus);
          location.hash = `#/video/${number}?panel=label`;
        }),
        button("Dismiss", () => leave(proposal, item, `${video.id}: dismissed`)),
      ),
    );
    return item;
  }

  function forget(proposal) {
    proposals.videos = proposals.videos.filter((other) => other !== proposal);
    keep(corpus);
  }

  function leave(proposal, item, text) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    forget(proposal);
    item.remove();
    announce(text);
    if (next) next.querySelector("button").focus();
    else draw();
  }
}

/** Save a proposal over the labels that the server had when it was made; others are a conflict. */
async function save({ number, intervals, version }) {
  const body = { intervals: intervals.map(({ start, end, label }) => ({ start, end, label })), version };
  await request(`/api/videos/${number}/intervals`, { method: "PUT", body });
}

/** What the sources get from each other, beside a straight line in time. */
function controlNote(control) {
  if (typeof control?.agreement !== "number") return null;
  const percent = (share) => `${Math.round(100 * share)} %`;
  const line = typeof control.straight_line === "number" ? `; a straight line in time: ${percent(control.straight_line)}` : "";
  return el("p.note", {}, `Labelled videos, each from the others: ${percent(control.agreement)} of the frames are right${line}.`);
}
