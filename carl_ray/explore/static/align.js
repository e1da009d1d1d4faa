// View of an alignment: two to six videos side by side; the first plays in real time, the others follow it.

import { address, request } from "./api.js";
import { button, choice, clock, el, failure, lateImage, svg } from "./dom.js";
import { bindKeys, frameKeys } from "./keys.js";
import { FramePlayer } from "./player.js";

const TICK = 100; // ms between corrections of the followers' pace
const FAR = 0.35; // seconds off, above which a follower jumps
const ALIGNED = [["", "from end to end"], ["open", "with open ends: idle time may stay over"], ["repetitions", "repetition by repetition"]];
const PLOT = { widest: 960, height: 170, left: 48, bottom: 20 }; // px

export async function show(context) {
  const { main, corpus, params, signal } = context;
  const numbers = (params.get("videos") ?? "").split(",").filter((text) => /^\d+$/.test(text) && corpus.videos[text]).map(Number);
  const heading = el("h1", {}, "Align");
  if (numbers.length < 2 || numbers.length > 6) {
    main.replaceChildren(heading, el("p.note", {}, "Select two to six videos in the ", el("a", { href: "#/library" }, "library"), " and choose Align."));
    return;
  }
  main.replaceChildren(heading, el("p.note", { role: "status" }, "Aligning …"));
  try {
    const query = { videos: numbers.join(","), ends: params.get("ends") };
    const path = address("/api/alignment", query).replaceAll("%2C", ",");
    const [alignment, ...videos] = await Promise.all([
      request(path, { signal }),
      ...numbers.map((number) => request(`/api/videos/${number}`, { signal })),
    ]);
    if (!signal.aborted) build(context, heading, numbers, alignment, videos);
  } catch (error) {
    if (error.name !== "AbortError") {
      const whole = params.get("ends") && el("a", { href: `#/align?videos=${numbers}` }, "Align them from end to end");
      main.replaceChildren(heading, failure(error, () => show(context)), whole || "");
    }
  }
}

function build(context, heading, numbers, alignment, videos) {
  const { main, corpus, signal, params, setParams } = context;
  const names = numbers.map((number) => corpus.videos[number].id);
  const players = numbers.map((number, index) => new FramePlayer(number, videos[index].times, `Video ${names[index]}`));
  const [lead, ...followers] = players;
  const places = numbers.map(() => el("output.place"));
  const total = alignment.frames[0].length;
  const slider = el("input.phase-slider", { type: "range", min: 0, max: total - 1, value: 0, "aria-label": "Frame of the first video" });
  const play = button("Play", () => lead.toggle(), { className: "primary" });
  const times = alignment.frames.map((frames, index) => frames.map((frame) => videos[index].times[frame]));
  const plot = aheadPlot(times, names, Math.min(PLOT.widest, main.clientWidth - 32), (row) => showRow(row));
  const another = (changes) => {
    setParams(changes);
    context.reload();
  };
  const panes = players.map(pane);
  let row = 0; // of the alignment: a frame of the first video
  let pace = 0;

  main.replaceChildren(
    heading,
    el(
      "div.controls",
      {},
      play,
      choice("Align", ALIGNED, params.get("ends") ?? "", (ends) =>
        another({ ends, frame: row }),
      ),
    ),
    el("div.side-by-side", {}, panes),
    slider,
    el("section", { "aria-label": "Who is ahead" }, el("h2", {}, "Who is ahead"), plot.node),
    el(
      "p.controls",
      {},
      numbers.slice(1).map((number, index) =>
        el(
          "a.action",
          { href: address("/api/aligned.mp4", { videos: `${numbers[0]},${number}`, ends: params.get("ends") }), download: "aligned.mp4" },
          `Download with ${names[index + 1]} (mp4)`,
        ),
      ),
    ),
  );

  function pane(player, index) {
    const stage = el("div.stage", {}, player.video);
    const similarity = alignment.similarity?.[index];
    player.addEventListener("failed", () => {
      if (!signal.aborted) stage.replaceChildren(el("p.failure", {}, `Not shown: ${videos[index].error ?? "the browser cannot play it"}`));
    });
    return el(
      "figure.pane",
      {},
      stage,
      lateImage(`/api/videos/${numbers[index]}/ribbon`, { className: "stripe" }),
      el(
        "figcaption",
        {},
        el("a.name", { href: `#/video/${numbers[index]}`, title: names[index] }, names[index]),
        places[index],
        el("span.facts", {}, index === 0 ? "plays in real time" : typeof similarity === "number" && `mean similarity ${similarity.toFixed(3)}`),
        index > 0 &&
          button("Make it first", () => {
            const order = [numbers[index], ...numbers.filter((_, place) => place !== index)];
            another({ videos: order.join(","), frame: alignment.frames[index][row] });
          }),
      ),
    );
  }

  /** Pause all at the frames of a row of the alignment. */
  function showRow(wanted) {
    row = Math.max(0, Math.min(total - 1, wanted));
    players.forEach((player, index) => player.show(alignment.frames[index][row]));
    showPlace();
  }

  function showPlace() {
    slider.value = row;
    slider.setAttribute("aria-valuetext", `frame ${row}, ${clock(times[0][row])}`);
    plot.show(row);
    numbers.forEach((_, index) => {
      const frame = alignment.frames[index][row];
      const [first, stop] = alignment.shared[index];
      const isApart = row < first || row >= stop;
      panes[index].classList.toggle("apart", isApart);
      places[index].textContent = `frame ${frame} · ${clock(times[index][row])}${isApart ? " · waits: nothing here is alike" : ""}`;
    });
  }

  /** While the first plays: the pace of each other is the slope of the path, corrected by how far it is off. */
  function follow() {
    const next = Math.min(total - 1, row + Math.max(1, Math.round(total / 60)));
    const passed = times[0][next] - times[0][row];
    followers.forEach(({ video }, index) => {
      if (video.error || video.seeking || video.readyState < 2) return;
      const own = times[index + 1];
      const off = own[row] - video.currentTime;
      const slope = passed > 0 ? (own[next] - own[row]) / passed : 1;
      const rate = slope + 2 * off;
      if (Math.abs(off) > FAR) video.currentTime = own[row];
      if (rate < 0.1) video.pause();
      else {
        video.playbackRate = Math.min(4, rate);
        if (video.paused) video.play().catch(() => {});
      }
    });
  }

  function stop() {
    clearInterval(pace);
    pace = 0;
  }

  lead.addEventListener("frame", () => {
    if (lead.paused) return;
    row = Math.min(lead.frame, total - 1);
    showPlace();
  });
  lead.addEventListener("play", () => {
    play.textContent = "Pause";
    pace ||= setInterval(follow, TICK);
  });
  lead.addEventListener("pause", () => {
    play.textContent = "Play";
    stop();
    showRow(row);
  });
  lead.addEventListener("settled", () => setParams({ frame: row }));
  slider.addEventListener("input", () => showRow(Number(slider.value)));
  signal.addEventListener("abort", () => {
    stop();
    players.forEach((player) => player.close());
  });
  bindKeys(frameKeys(() => lead.toggle(), () => row, showRow), signal);
  showRow(Number(params.get("frame")) || 0);
}

/** Plot of how many seconds each video is ahead of the first one; `onseek(row)` is called at a click. */
function aheadPlot(times, names, width, onseek) {
  const { height, left, bottom } = PLOT;
  const total = times[0].length;
  // Ahead: it has needed less time since the beginning for the same point of the action.
  const ahead = times.slice(1).map((own) => own.map((time, row) => times[0][row] - times[0][0] - (time - own[0])));
  const most = Math.max(0.1, ...ahead.flat().map(Math.abs));
  const x = (row) => left + ((width - left - 4) * row) / Math.max(1, total - 1);
  const y = (seconds) => 6 + ((height - bottom - 6) * (most - seconds)) / (2 * most);
  const cursor = svg("line.plot-cursor", { y1: 0, y2: height - bottom });
  const values = el("p.legend", { role: "status" });
  const drawing = svg(
    "svg.plot",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Seconds ahead of ${names[0]}` },
    [most, 0, -most].map((seconds) => [
      svg("line.plot-grid", { x1: left, x2: width, y1: y(seconds), y2: y(seconds) }),
      svg("text", { x: left - 6, y: y(seconds) + 4, "text-anchor": "end" }, `${seconds > 0 ? "+" : ""}${seconds.toFixed(1)} s`),
    ]),
    svg("text", { x: left, y: height - 4 }, clock(times[0][0])),
    svg("text", { x: width - 2, y: height - 4, "text-anchor": "end" }, clock(times[0][total - 1])),
    ahead.map((line, index) => svg(`polyline.line-${index}`, { points: line.map((seconds, row) => `${x(row).toFixed(1)},${y(seconds).toFixed(1)}`).join(" ") })),
    cursor,
  );
  drawing.addEventListener("click", (event) => {
    const box = drawing.getBoundingClientRect();
    onseek(Math.round(((((event.clientX - box.left) / box.width) * width - left) / (width - left - 4)) * (total - 1)));
  });
  return {
    node: el("div", {}, drawing, values),
    show(row) {
      cursor.setAttribute("x1", x(row));
      cursor.setAttribute("x2", x(row));
      values.replaceChildren(
        ...ahead.map((line, index) => {
          const seconds = line[row];
          const word = Math.abs(seconds) < 0.005 ? "level with" : `${Math.abs(seconds).toFixed(2)} s ${seconds > 0 ? "ahead of" : "behind"}`;
          return el("span", {}, svg("svg.key", { viewBox: "0 0 24 8" }, svg(`line.line-${index}`, { x1: 0, x2: 24, y1: 4, y2: 4 })), ` ${names[index + 1]}: ${word} ${names[0]}`);
        }),
      );
    },
  };
}
