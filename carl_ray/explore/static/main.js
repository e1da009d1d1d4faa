// Entry of the page: loads the library, and shows the view that the address names.

import { request } from "./api.js";
import { el, failure, rememberPhases } from "./dom.js";
import { bindKeys, helpDialog } from "./keys.js";
import { draftsOf } from "./label_store.js";
import * as align from "./align.js";
import * as library from "./library.js";
import * as propagate from "./propagate.js";
import * as video from "./video.js";

const VIEWS = { library, video, align, propagate };
const main = document.getElementById("main");
const help = helpDialog();
let corpus = null; // answer of /api/library
let leave = new AbortController(); // aborted when another view is shown
let libraryPlace = { hash: "#/library", top: 0 }; // where the library was left
const selected = new Set(); // numbers of videos

document.body.append(help);
document.getElementById("help-button").addEventListener("click", () => help.showModal());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
bindKeys({
  "?": () => help.showModal(),
  "Shift+?": () => help.showModal(),
  "/": () => {
    const search = document.getElementById("search");
    if (search) search.focus();
    else location.hash = "#/library?focus=search";
  },
  Escape: () => {
    if (document.activeElement.closest("input, select")) document.activeElement.blur();
    else location.hash = libraryPlace.hash;
  },
});
addEventListener("hashchange", ({ oldURL }) => {
  const old = new URL(oldURL).hash;
  if (/^(#\/library|$)/.test(old)) libraryPlace = { hash: old || "#/library", top: scrollY };
  show();
  if (!main.contains(document.activeElement)) main.focus({ preventScroll: true });
});
document.addEventListener("labels-saved", () => corpus && showDrafts());
start();

async function start() {
  try {
    corpus = await request("/api/library");
  } catch (error) {
    main.replaceChildren(failure(error, start));
    return;
  }
  rememberPhases(corpus.actions);
  document.getElementById("title").textContent = corpus.title;
  show();
}

/** Show the view of `location.hash`: #/NAME/NUMBER?PARAMETERS. */
function show() {
  if (corpus === null) return;
  leave.abort();
  leave = new AbortController();
  const [path, query] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name, number] = path.split("/");
  const params = new URLSearchParams(query ?? "");
  const view = VIEWS[name] ? name : "library";
  document.title = `${view === "library" ? "" : `${view} · `}${corpus.title}`;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.dataset.view === "library") link.href = libraryPlace.hash;
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showDrafts();
  let noted = location.hash; // another one is that of a link, whose event is still to come
  VIEWS[view].show({
    main,
    corpus,
    selected,
    params,
    number: /^\d+$/.test(number ?? "") ? Number(number) : null,
    signal: leave.signal,
    /** Change parameters of the address without leaving the view. */
    setParams(changes) {
      for (const [key, value] of Object.entries(changes)) {
        if (value === null || value === "" || value === undefined) params.delete(key);
        else params.set(key, value);
      }
      if (location.hash !== noted) return;
      const text = params.toString().replaceAll("%2C", ",");
      history.replaceState(null, "", `#/${path || view}${text ? `?${text}` : ""}`);
      noted = location.hash;
    },
    reload: show,
    /** For readers of the screen. */
    announce(text) {
      document.getElementById("announcer").textContent = text;
    },
  });
  scrollTo(0, location.hash === libraryPlace.hash ? libraryPlace.top : 0);
}

/** Labels that the server has not confirmed: of other videos than the one that is shown. */
function showDrafts() {
  const videos = draftsOf(corpus).filter((video) => !location.hash.startsWith(`#/video/${video.number}?`));
  document.getElementById("drafts").replaceChildren(
    ...(videos.length
      ? [
          "Labels that are kept in this browser only; open the video to save them: ",
          ...videos.map((video) => el("a", { href: `#/video/${video.number}?panel=label` }, video.id)),
        ]
      : []),
  );
}
