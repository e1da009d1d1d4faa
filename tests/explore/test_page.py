"""The page in real Chromium, on made videos whose frames show their number."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin, write_part

api = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

ORIGIN = Origin("run", "0" * 64, "demo", 1, 8, 8, "resized", has_untrained=False)
LENGTHS = [90, 97, 104, 111, 118, 125]
PATIENCE = 120.0
"""Seconds for whatever must come: a server's first propagation loads torch, on cores that it may have a tenth of."""
HOSTILE = "pour/3 \"'<img src=x onerror=alert(1)>\n🎬 &amp;.mp4"
FRAME = """video => {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext('2d');
    context.drawImage(video, 0, 0);
    let number = 0;
    for (let bit = 0; bit < 12; bit++) {
        const x = ((bit % 4) + .5) * canvas.width / 4, y = (Math.floor(bit / 4) + .5) * canvas.height / 3;
        if (context.getImageData(x, y, 1, 1).data[1] > 127) number += 1 << bit;
    }
    return number;
}"""
"""Number that the frame of a video element shows."""


class Server:
    """`carl-ray explore` in a process of its own, at one port."""

    def __init__(self, embeddings: Path, labels: Path, port: int) -> None:
        self.labels = labels
        self.command = [sys.executable, "-m", "carl_ray.explore", f"--port={port}"]
        self.command += [f"--embeddings={embeddings}", f"--labels={labels}"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("explore: ")), "")
        assert line, "the server has ended"
        self.url = line.removeprefix("explore: ").strip()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def address(self, path: str) -> str:
        return self.url.replace("/?", f"/{path}{'&' if '?' in path else '?'}", 1)

    def own_labels(self) -> list[tuple[str, float, float, str]]:
        """Rows of the file of labels."""
        return _rows(self.labels.read_text()) if self.labels.exists() else []


def _rows(text: str) -> list[tuple[str, float, float, str]]:
    rows = csv.DictReader(io.StringIO(text))
    return [(row["video"], float(row["start"]), float(row["end"]), row["label"]) for row in rows]


def embedded(
    name: str, uri: Path, frames: int, pace: float, start: float = 0.0, **fields: Any
) -> EmbeddedVideo:
    """A video that goes along the same curve as others, from an angle on and at a pace of its own."""
    angles = start + 3 * np.linspace(0, 1, frames) ** pace
    curve = np.stack([turn(k * angles) for k in (1, 2, 4) for turn in (np.cos, np.sin)], 1)
    return EmbeddedVideo(
        video_id=name,
        uri=str(uri),
        timestamps=np.arange(frames, dtype=np.float64),
        embeddings=curve.astype(np.float32),
        fps=30.0,
        **fields,
    )


@pytest.fixture(scope="module")
def embeddings(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos: the fourth has a hostile name, the fifth needs another codec, the sixth has no file."""
    folder = tmp_path_factory.mktemp("explore")
    files = [make_video(folder / f"{n}.mp4", length, 96, 72) for n, length in enumerate(LENGTHS[:4])]
    files.append(make_video(folder / "4.avi", LENGTHS[4], 96, 72, codec="mpeg4"))
    files.append(folder / "5.mp4")
    names = ["pour/0.mp4", "pour/1.mp4", "pour/2.mp4", HOSTILE, "pour/4.avi", "pour/5.mp4"]
    paces = [1.0, 1.3, 0.8, 1.1, 0.9, 1.0]
    videos = [
        embedded(
            name,
            file,
            length,
            pace,
            2.0 if n == 5 else 0.0,
            label="lift" if n == 3 else "pour",
            split=("train", "test")[n % 2],
        )
        for n, (name, file, length, pace) in enumerate(zip(names, files, LENGTHS, paces, strict=True))
    ]
    write_part(str(folder / "embeddings"), videos, ORIGIN, "float32")
    return folder / "embeddings"


@pytest.fixture(scope="module")
def unlabelled(
    embeddings: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[Server]:
    """The server of all tests that save no labels."""
    server = Server(embeddings, tmp_path_factory.mktemp("unlabelled") / "labels.csv", free_port())
    yield server
    assert server.own_labels() == []
    server.kill()


@pytest.fixture
def server(embeddings: Path, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    server = Server(embeddings, tmp_path / "labels.csv", free_port())
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=1000 * PATIENCE)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1000 * PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test at any script error, and at anything that the security policy forbids."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda line: "Policy" in line.text and errors.append(line.text))
    yield page
    context.close()
    assert not errors


def open_view(page: Any, server: Server, view: str) -> None:
    page.goto("about:blank")
    page.goto(f"{server.url}#/{view}")
    page.locator("main > *").first.wait_for(state="attached")


def wait_until(page: Any, expression: str) -> None:
    """Playwright's own `wait_for_function` evaluates strings, which the security policy forbids."""
    until = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < until, f"not in {PATIENCE:.0f} s: {expression}"
        page.wait_for_timeout(50)


def wait_for_frame(page: Any, wanted: int, selector: str = ".stage video", tolerance: int = 0) -> None:
    """Wait until a video shows this frame, by its pixels."""
    until = time.monotonic() + PATIENCE
    shown = None
    while time.monotonic() < until:
        video = page.locator(selector).first
        if video.evaluate("video => video.readyState >= 2 && !video.seeking"):
            shown = video.evaluate(FRAME)
            if abs(shown - wanted) <= tolerance:
                return
        page.wait_for_timeout(50)
    raise AssertionError(f"{selector} shows frame {shown}, expected {wanted}")


def fetch(page: Any, server: Server, path: str) -> Any:
    return page.request.get(server.address(path), timeout=1000 * PATIENCE).json()


def labels_csv(page: Any) -> list[tuple[str, float, float, str]]:
    with page.expect_download() as download:
        page.get_by_role("link", name="Export labels").click()
    return _rows(Path(download.value.path()).read_text())


def test_every_key_shows_exactly_its_frame(page: Any, unlabelled: Server) -> None:
    open_view(page, unlabelled, "video/1?frame=41")
    wait_for_frame(page, 41)
    for key, frame in [
        ("ArrowRight", 42), (".", 43), ("Shift+ArrowRight", 53), ("ArrowLeft", 52), (",", 51),
        ("Shift+ArrowLeft", 41), ("End", 96), ("ArrowRight", 96), ("Home", 0), ("ArrowLeft", 0),
    ]:  # fmt: skip
        page.keyboard.press(key)
        wait_for_frame(page, frame)
    ribbon = page.get_by_role("slider", name="Frame")
    box = ribbon.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 60.5 / 97, box["y"] + 5)
    wait_for_frame(page, 60)
    assert ribbon.get_attribute("aria-valuenow") == "60"
    wait_until(page, "location.hash.includes('frame=60')")
    page.keyboard.press(" ")
    wait_until(page, "document.querySelector('.stage video').currentTime > 2.3")
    page.keyboard.press(" ")
    wait_until(page, "document.querySelector('.stage video').paused")
    wait_for_frame(page, int(ribbon.get_attribute("aria-valuenow")))


def test_third_moment_plays_as_a_loop_and_opens_where_it_is(page: Any, unlabelled: Server) -> None:
    open_view(page, unlabelled, "video/0?frame=30")
    third = page.get_by_role("list", name="Similar moments").get_by_role("listitem").nth(2)
    expected = fetch(page, unlabelled, "api/moments?video=0&frame=30&count=24")["moments"][2]
    assert f"{expected['similarity']:.3f}" in third.text_content()
    third.hover()
    loop = third.locator("video")
    api.expect(loop).to_have_js_property("paused", False)
    # Told by the video itself, after the page has had its turn: how late that is, a busy machine decides.
    loop.evaluate(
        "video => { window.seen = []; video.addEventListener('timeupdate', () => seen.push(video.currentTime)); }"
    )
    begin = max(0.0, expected["time"] - 0.75)
    turned = f"seen.some((time, n) => n && time < seen[n - 1] && Math.abs(time - {begin}) < 0.2)"
    wait_until(page, f"new Set(seen).size > 10 && {turned}")
    seen = page.evaluate("seen")
    assert all(begin - 0.2 < time < expected["time"] + 0.8 for time in seen), seen
    page.get_by_role("combobox", name="Label").select_option("lift")
    wait_until(page, "document.querySelector('.panel .note').textContent.startsWith('1 moment')")
    assert "label=lift" in page.url
    page.get_by_role("combobox", name="Label").select_option("")
    wait_until(page, "document.querySelector('.panel .note').textContent.startsWith('5 moments')")
    third.get_by_role("link").first.click()
    wait_until(page, f"location.hash.startsWith('#/video/{expected['video']}')")
    wait_for_frame(page, expected["frame"])
    open_view(page, unlabelled, "video/3")
    page.get_by_role("list", name="Similar moments").get_by_role("listitem").first.wait_for()
    assert page.get_by_role("heading", level=1).text_content() == HOSTILE
    assert page.locator("main img[src='x']").count() == 0


def test_aligned_players_stand_on_the_path(page: Any, unlabelled: Server) -> None:
    open_view(page, unlabelled, "align?videos=0,1,2")
    frames = fetch(page, unlabelled, "api/alignment?videos=0,1,2")["frames"]
    slider = page.get_by_role("slider", name="Frame of the first video")
    for row in (0, 20, 44, 71, 89):
        slider.fill(str(row))
        for index in range(3):
            wait_for_frame(page, frames[index][row], f".pane:nth-child({index + 1}) video", tolerance=1)
    assert "behind" in page.locator(".legend").text_content()
    slider.fill("0")
    slider.blur()
    page.keyboard.press(" ")
    wait_until(page, "document.querySelector('.phase-slider').value > 44")  # 1.5 s
    page.keyboard.press(" ")
    wait_until(page, "[...document.querySelectorAll('.pane video')].every(video => video.paused)")
    row = int(slider.input_value())
    assert row > 44
    for index in range(3):
        wait_for_frame(page, frames[index][row], f".pane:nth-child({index + 1}) video", tolerance=1)
    page.get_by_label("Align").select_option("repetitions")
    page.get_by_text("expected videos that repeat").wait_for()
    page.get_by_role("link", name="Align them from end to end").click()
    slider.wait_for()


def draw_two(page: Any) -> None:
    """Draw "reach", frames 10 to 29, with the mouse, and "grasp", frames 30 to 59, with keys, in a video of 90."""
    track = page.get_by_role("group", name="Intervals; drag")
    box = track.bounding_box()
    x, y = (lambda frame: box["x"] + box["width"] * (frame + 0.5) / 90), box["y"] + box["height"] / 2
    page.mouse.move(x(10), y)
    page.mouse.down()
    page.mouse.move(x(20), y)
    page.mouse.move(x(29), y)
    page.mouse.up()
    page.get_by_role("textbox", name="Name").or_(page.get_by_role("combobox", name="Name")).first.fill(
        "reach"
    )
    page.keyboard.press("Enter")
    for key in ("Home", *["Shift+ArrowRight"] * 3, "i", *["Shift+ArrowRight"] * 2, *["ArrowRight"] * 9, "o"):
        page.keyboard.press(key)
    page.keyboard.type("grasp")
    page.keyboard.press("Enter")


def saved(page: Any) -> None:
    wait_until(page, "document.querySelector('.state')?.dataset.state === 'saved'")


def test_labels_are_drawn_propagated_corrected_and_exported(page: Any, server: Server) -> None:
    open_view(page, server, "video/0?panel=label")
    wait_for_frame(page, 0)
    draw_two(page)
    saved(page)
    own = [("pour/0.mp4", 10 / 30, 1.0, "reach"), ("pour/0.mp4", 1.0, 2.0, "grasp")]
    assert labels_csv(page) == server.own_labels() == [pytest.approx(row, abs=1e-3) for row in own]
    page.keyboard.press("Delete")
    page.keyboard.press("z")
    saved(page)
    assert len(labels_csv(page)) == 2
    page.get_by_role("link", name="Propagate", exact=True).last.click()
    page.get_by_role("button", name="Propagate").click()
    proposals = page.get_by_role("list", name="Proposals").get_by_role("listitem")
    api.expect(proposals).to_have_count(4)
    shown = page.evaluate("document.querySelector('main').innerText")
    assert "null" not in shown and "false" not in shown
    confidences = [float(text.split()[-1]) for text in proposals.locator(".head .facts").all_text_contents()]
    assert confidences == sorted(confidences)
    assert len(labels_csv(page)) == 2  # Proposals are not saved.
    accepted = proposals.first.locator(".name").text_content()
    proposals.first.get_by_role("button", name="Accept").click()
    api.expect(proposals).to_have_count(3)
    page.reload()
    api.expect(proposals).to_have_count(3)
    corrected = proposals.first.locator(".name").text_content()
    proposals.first.get_by_role("button", name="Correct").click()
    page.get_by_role("heading", name=corrected).wait_for()
    assert {row[0] for row in labels_csv(page)} == {
        "pour/0.mp4",
        accepted,
    }  # The correction is not saved yet.
    page.get_by_label("Name").first.fill("approach")
    page.keyboard.press("Enter")
    saved(page)
    page.reload()
    page.get_by_label("Name").first.wait_for()
    rows = labels_csv(page)
    assert [row[3] for row in rows if row[0] == corrected] == ["approach", "grasp"]
    assert {row[0] for row in rows} == {"pour/0.mp4", accepted, corrected}
    assert rows == server.own_labels()
    page.get_by_role("link", name="Propagate", exact=True).first.click()
    api.expect(proposals).to_have_count(2)


def test_no_label_is_lost_when_server_and_page_die(page: Any, server: Server) -> None:
    open_view(page, server, "video/0?panel=label")
    wait_for_frame(page, 0)
    server.kill()
    draw_two(page)
    wait_until(page, "document.querySelector('.state').dataset.state === 'offline'")
    assert server.own_labels() == []
    page.goto("about:blank")
    server.start()
    open_view(page, server, "library")
    page.locator("#drafts").get_by_role("link", name="pour/0.mp4").click()
    saved(page)
    assert [row[3] for row in server.own_labels()] == ["reach", "grasp"]
    assert page.evaluate("localStorage.length") == 0
    server.kill()
    server.start()
    open_view(page, server, "video/0?panel=label")
    api.expect(page.get_by_label("Name", exact=True)).to_have_count(2)
    assert page.evaluate("localStorage.length") == 0


def test_labels_of_another_page_are_not_overwritten(page: Any, server: Server) -> None:
    open_view(page, server, "video/0?panel=label")
    wait_for_frame(page, 0)
    theirs = {"intervals": [{"start": 0.0, "end": 0.5, "label": "theirs"}], "version": 0}
    assert page.request.put(server.address("api/videos/0/intervals"), data=theirs).ok
    draw_two(page)
    page.get_by_role("button", name="Save yours over theirs").wait_for()
    assert "theirs 0:00.00–0:00.50" in page.get_by_role("region", name="Labels").text_content()
    assert [row[3] for row in server.own_labels()] == ["theirs"]
    page.reload()
    page.get_by_role("button", name="Save yours over theirs").wait_for()
    page.get_by_role("button", name="Take theirs").click()
    saved(page)
    assert [row[3] for row in server.own_labels()] == ["theirs"]
    page.keyboard.press("z")
    saved(page)
    assert [row[3] for row in server.own_labels()] == ["reach", "grasp"]


def test_video_of_another_codec_is_shown_frame_by_frame(page: Any, unlabelled: Server) -> None:
    open_view(page, unlabelled, "video/4?frame=17")
    wait_for_frame(page, 17)
    for key, frame in [("ArrowRight", 18), ("Shift+ArrowRight", 28), ("End", LENGTHS[4] - 1), ("Home", 0)]:
        page.keyboard.press(key)
        wait_for_frame(page, frame)
    assert "transcoded" in page.locator("main > .note").text_content()


def test_video_without_file_still_has_moments(page: Any, unlabelled: Server) -> None:
    open_view(page, unlabelled, "video/5")
    page.get_by_role("alert").filter(has_text="not shown").wait_for()
    moments = page.get_by_role("list", name="Similar moments").get_by_role("listitem")
    api.expect(moments).to_have_count(5)
    page.route("**/api/moments*", lambda route: route.fulfill(status=500, json={"error": "made to fail"}))
    page.keyboard.press("End")
    page.get_by_role("alert").filter(has_text="made to fail").wait_for()
    page.unroute("**/api/moments*")
    page.get_by_role("list").get_by_role("button", name="Try again").click()
    api.expect(moments).to_have_count(5)


def test_a_link_wins_over_what_the_view_that_it_leaves_notes_in_the_address(
    page: Any, unlabelled: Server
) -> None:
    open_view(page, unlabelled, "video/0?frame=7")
    wait_for_frame(page, 7)
    # Until the browser tells of the new address, the view lives: a frame that settles, or a key, notes itself.
    page.evaluate(
        "document.querySelector('nav a[data-view=propagate]').click();"
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'l', bubbles: true}))"
    )
    page.get_by_role("heading", name="Propagate labels").wait_for()
    assert page.evaluate("location.hash") == "#/propagate"


@pytest.fixture
def large(embeddings: Path, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    """5,000 videos, all of one file."""
    file = embeddings.parent / "0.mp4"
    videos = [embedded(f"{n:04}.mp4", file, 90, 1.0, split=f"part {n % 5}") for n in range(5000)]
    write_part(str(tmp_path / "embeddings"), videos, ORIGIN, "float16")
    server = Server(tmp_path / "embeddings", tmp_path / "labels.csv", free_port())
    yield server
    server.kill()


def test_library_of_thousands_keeps_only_what_is_in_sight(page: Any, large: Server) -> None:
    open_view(page, large, "library?sort=-")
    cards = page.locator(".card")
    cards.first.wait_for()
    assert cards.first.locator(".name").text_content() == "4999.mp4"
    for _ in range(10):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(30)
        assert 0 < cards.count() < 150
    page.keyboard.press("/")
    page.keyboard.type("0123")
    api.expect(cards).to_have_count(1)
    page.get_by_role("searchbox").fill("")
    page.get_by_role("combobox", name="split").select_option("part 3")
    api.expect(page.locator(".counts")).to_contain_text("1000 of 5000 videos")
    page.reload()
    api.expect(page.locator(".counts")).to_contain_text("1000 of 5000 videos")
    page.mouse.wheel(0, 3000)
    wait_until(page, "scrollY > 2000")
    place = page.evaluate("scrollY")
    cards.nth(30).get_by_role("link").click()
    page.get_by_role("heading", level=1).filter(has_text=".mp4").wait_for()
    page.keyboard.press("Escape")
    api.expect(page.locator(".counts")).to_contain_text("1000 of 5000 videos")
    wait_until(page, f"scrollY === {place}")


@pytest.mark.parametrize(
    "view", ["library?select=0,1", "video/3?frame=9", "video/3?panel=label", "align?videos=3,1", "propagate"]
)
def test_views_fit_a_phone_and_do_not_shift(page: Any, unlabelled: Server, view: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => list.getEntries().forEach(entry => shift += entry.value))"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    open_view(page, unlabelled, view)
    page.wait_for_timeout(1500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("shift") < 0.1
    unnamed = "[...document.querySelectorAll('button, a, input, select')]"
    unnamed += ".filter(x => !(x.ariaLabel || x.textContent.trim() || x.labels?.length))"
    assert page.evaluate(f"{unnamed}.map(x => x.outerHTML)") == []
    page.keyboard.press("Tab")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keyboard help").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
