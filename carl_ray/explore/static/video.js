// View of one video: the player, the ribbon as its scrubber, and a panel of similar moments or labels.

import { request } from "./api.js";
import { button, clock, el, failure } from "./dom.js";
import { bindKeys, frameKeys } from "./keys.js";
import { LabelPanel } from "./label.js";
import { Moments } from "./moments.js";
import { FramePlayer } from "./player.js";
import { Ribbon } from "./ribbon.js";

const SETTLE = 250; // ms at a frame before its moments are looked for

export async function show(context) {
  const { main, corpus, number, signal } = context;
  const entry = corpus.videos[number];
  if (number === null || !entry) {
    main.replaceChildren(failure(new Error("There is no such video in these embeddings.")), el("a", { href: "#/library" }, "Library"));
    return;
  }
  const heading = el("h1", {}, entry.id);
  document.title = `${entry.id} · ${corpus.title}`;
  main.replaceChildren(heading, el("div.stage.loading", { role: "status" }, "Loading …"));
  let answer;
  try {
    answer = await request(`/api/videos/${number}`, { signal });
  } catch (error) {
    if (error.name !== "AbortError") main.replaceChildren(heading, failure(error, () => show(context)));
    return;
  }
  if (!signal.aborted) build(context, entry, heading, answer);
}

function build(context, entry, heading, answer) {
  const { main, corpus, number, params, signal, selected, setParams, announce } = context;
  const { times } = answer;
  const player = new FramePlayer(number, times, `Video ${entry.id}`);
  const ribbon = new Ribbon(number, times, (frame) => player.show(frame));
  const stage = el("div.stage", {}, player.video);
  const place = el("output.place");
  const play = button("Play", () => player.toggle(), { className: "primary" });
  const moments = new Moments(context);
  const panel = el("div.panel");
  const below = el("div"); // the track of labels, as wide as the ribbon
  const tabs = el("div.tabs", { role: "group", "aria-label": "Panel" });
  let labels = null;
  let waiting = 0;

  const facts = [entry.label, ...corpus.columns.map((column) => entry.fields[column] && `${column} ${entry.fields[column]}`)];
  facts.push(`${entry.frames} frames`, entry.fps && `${entry.fps.toFixed(2)} frames/s`, answer.plays === "transcoded" && "transcoded for the browser");
  main.replaceChildren(
    heading,
    el("p.note", {}, facts.filter(Boolean).join(" · ")),
    el(
      "div.split",
      {},
      el(
        "div",
        {},
        stage,
        ribbon.node,
        below,
        el(
          "div.transport",
          {},
          play,
          button("◀", () => player.step(-1), { "aria-label": "One frame back" }),
          button("▶", () => player.step(1), { "aria-label": "One frame on" }),
          place,
        ),
      ),
      el("div", {}, tabs, panel),
    ),
  );

  function showFrame() {
    ribbon.show(player.frame);
    place.textContent = `frame ${player.frame} of ${times.length} · ${clock(times[player.frame] ?? 0)}`;
    labels?.showFrame(player.frame);
  }

  /** On the ribbon: own labels or else the manifest's; beside the track, which has the own ones, the manifest's. */
  function showIntervals() {
    const isLabelling = params.get("panel") === "label";
    const others = answer.intervals.filter(({ origin }) => origin !== "own");
    const own = labels ? labels.store.intervals : answer.intervals.filter(({ origin }) => origin === "own");
    ribbon.setIntervals(isLabelling || !own.length ? others : own);
    ribbon.bars.hidden = isLabelling && !others.length;
  }

  function look() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (signal.aborted || !player.paused) return;
      setParams({ frame: player.frame });
      if (params.get("panel") !== "label") moments.find(player.frame);
    }, SETTLE);
  }

  function openPanel(name) {
    setParams({ panel: name === "label" ? "label" : null });
    tabs.replaceChildren(
      ...[["moments", "Similar moments"], ["label", "Label"]].map(([key, text]) =>
        button(text, () => openPanel(key), { "aria-pressed": String(key === name) }),
      ),
    );
    if (name === "label") {
      labels ??= new LabelPanel(context, answer, player, showIntervals);
      panel.replaceChildren(labels.node);
      below.replaceChildren(labels.track);
      labels.showFrame(player.frame);
    } else {
      panel.replaceChildren(moments.node);
      below.replaceChildren();
      if (player.paused) moments.find(player.frame);
    }
    showIntervals();
  }

  player.addEventListener("frame", showFrame);
  player.addEventListener("settled", look);
  player.addEventListener("play", () => (play.textContent = "Pause"));
  player.addEventListener("pause", () => (play.textContent = "Play"));
  player.addEventListener("failed", () => {
    if (signal.aborted) return;
    const reason = answer.error ?? (entry.available ? "the server cannot read it or the browser cannot play it" : "its file is not there");
    const again = () => {
      stage.replaceChildren(player.video);
      player.video.load();
      player.show(player.frame);
    };
    stage.replaceChildren(failure(new Error(`This video is not shown: ${reason}. Its ribbon and moments still work.`), again));
    look();
  });
  signal.addEventListener("abort", () => {
    clearTimeout(waiting);
    player.close();
  });
  bindKeys(
    {
      ...frameKeys(() => player.toggle(), () => player.frame, (frame) => player.show(frame)),
      m: () => openPanel("moments"),
      l: () => openPanel("label"),
      x: () => {
        selected.add(number);
        announce(`${entry.id} is selected; ${selected.size} in all.`);
      },
    },
    signal,
  );
  const frame = Number(params.get("frame") ?? 0);
  player.show(Number.isInteger(frame) ? frame : 0);
  showFrame();
  openPanel(params.get("panel") === "label" ? "label" : "moments");
}
