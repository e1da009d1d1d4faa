"""A server with the contract of the page, on made videos, until the real one is there."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image

STATIC = Path(__file__).parents[2] / "carl_ray" / "explore" / "static"
FPS = 30
CSP = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; frame-ancestors 'none'"


class Fake:
    def __init__(self, paths, ids, lengths, phases=("reach", "grasp", "lift", "pour"), port=0):
        self.paths, self.ids, self.lengths, self.port = paths, ids, lengths, port
        self.own = {n: [] for n in range(len(ids))}
        self.version = {n: 0 for n in range(len(ids))}
        self.phases = list(phases)
        self.fail = None

    def label(self, n):
        return "pour" if n % 3 else "lift"

    def start(self):
        started = threading.Event()

        def run():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
            app = web.Application(middlewares=[self.headers])
            get = web.get
            app.add_routes([
                get("/", lambda r: web.FileResponse(STATIC / "index.html")),
                get("/static/{name}", lambda r: web.FileResponse(STATIC / r.match_info["name"], headers={"Cache-Control": "no-cache"})),
                get("/api/library", self.library), get(r"/api/videos/{n:\d+}", self.video),
                get(r"/api/videos/{n:\d+}/poster", self.poster), get(r"/api/videos/{n:\d+}/ribbon", self.ribbon),
                get(r"/media/{n:\d+}", self.media), get("/api/moments", self.moments),
                get("/api/alignment", self.alignment), get("/api/progress", self.progress),
                web.put(r"/api/videos/{n:\d+}/intervals", self.put), web.post("/api/propagation", self.propagation),
                get("/api/labels.csv", self.csv),
            ])
            self.runner = web.AppRunner(app)
            self.loop.run_until_complete(self.runner.setup())
            site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
            self.loop.run_until_complete(site.start())
            self.port = self.runner.addresses[0][1]
            started.set()
            self.loop.run_forever()
            self.loop.run_until_complete(self.runner.cleanup())

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        started.wait()
        return f"http://127.0.0.1:{self.port}/"

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    @web.middleware
    async def headers(self, request, handler):
        if self.fail and self.fail in request.path:
            return web.json_response({"error": f"made to fail: {self.fail}"}, status=500)
        response = await handler(request)
        if not response.prepared:
            response.headers["Content-Security-Policy"] = CSP
        return response

    def times(self, n):
        return (np.arange(self.lengths[n]) / FPS).tolist()

    async def library(self, request):
        return web.json_response({
            "title": "Fake corpus", "writable": True, "columns": ["split", "person"],
            "actions": [{"label": "lift", "phases": self.phases}, {"label": "pour", "phases": self.phases[:3]}],
            "videos": [{
                "number": n, "id": name, "label": self.label(n), "frames": self.lengths[n], "fps": float(FPS),
                "fields": {"split": ["train", "test"][n % 2], "person": f"p{n % 5}"}, "seconds": self.lengths[n] / FPS,
                "labelled": bool(self.own[n]), "available": self.paths[n] is not None,
            } for n, name in enumerate(self.ids)],
        })

    async def video(self, request):
        n = int(request.match_info["n"])
        return web.json_response({
            "number": n, "id": self.ids[n], "times": self.times(n), "version": self.version[n], "plays": "as is",
            "error": None if self.paths[n] else "no such file",
            "intervals": [dict(i, confidence=None, origin="own") for i in self.own[n]],
        })

    async def poster(self, request):
        n = int(request.match_info["n"])
        if self.paths[n] is None:
            raise web.HTTPNotFound
        x = np.linspace(0, 1, 240)[None, :, None] * np.array([200, 160, 90 + 20 * (n % 8)])
        image = Image.fromarray(np.broadcast_to(x, (180, 240, 3)).astype(np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        return web.Response(body=buffer.getvalue(), content_type="image/jpeg")

    async def ribbon(self, request):
        n = int(request.match_info["n"])
        x = np.arange(256)
        y = np.stack([128 + 100 * np.sin(x / 40 + n + k) for k in range(3)], 1)[None]
        buffer = io.BytesIO()
        Image.fromarray(y.astype(np.uint8)).save(buffer, "PNG")
        return web.Response(body=buffer.getvalue(), content_type="image/png")

    async def media(self, request):
        path = self.paths[int(request.match_info["n"])]
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path)

    async def moments(self, request):
        q = request.query
        n, frame = int(q["video"]), int(q["frame"])
        found = []
        for m in range(len(self.ids)):
            if m == n or (q.get("label") and q["label"] != self.label(m)):
                continue
            f = round(frame * (self.lengths[m] - 1) / (self.lengths[n] - 1))
            found.append({"video": m, "frame": f, "time": f / FPS, "similarity": 0.99 - 0.01 * len(found), "label": self.label(m)})
        return web.json_response({
            "query": {"video": n, "frame": frame, "time": frame / FPS}, "moments": found[: int(q["count"])],
            "searched": sum(self.lengths), "seconds": 0.004,
        })

    async def alignment(self, request):
        numbers = [int(x) for x in request.query["videos"].split(",")]
        base = np.linspace(0, 1, self.lengths[numbers[0]])
        frames = [np.round((base ** (1 + 0.4 * k)) * (self.lengths[n] - 1)).astype(int) for k, n in enumerate(numbers)]
        return web.json_response({
            "videos": numbers, "frames": [f.tolist() for f in frames], "times": [(f / FPS).tolist() for f in frames],
            "similarity": [None] + [0.9] * (len(numbers) - 1),
        })

    async def progress(self, request):
        return web.json_response({"posters": {"done": len(self.ids), "total": len(self.ids)}, "index": None})

    async def put(self, request):
        n = int(request.match_info["n"])
        body = await request.json()
        if body["version"] != self.version[n]:
            return web.json_response(
                {"error": "another page has saved", "intervals": self.own[n], "version": self.version[n]}, status=409)
        self.own[n] = body["intervals"]
        self.version[n] += 1
        return web.json_response({"version": self.version[n]})

    async def propagation(self, request):
        body = await request.json()
        sources = body.get("sources") or [n for n in self.own if self.own[n]]
        if not any(self.own[n] for n in sources):
            return web.json_response({"error": "no video has labels"}, status=400)
        targets = body.get("targets") or [n for n in self.own if not self.own[n]]
        source = next(n for n in sources if self.own[n])
        time.sleep(0.2)
        videos = []
        for k, n in enumerate(targets):
            scale = self.lengths[n] / self.lengths[source]
            intervals = [{"start": round(i["start"] * scale * FPS) / FPS, "end": round(i["end"] * scale * FPS) / FPS,
                          "label": i["label"], "confidence": 0.4 + 0.05 * k} for i in self.own[source]]
            videos.append({"number": n, "intervals": intervals, "confidence": 0.4 + 0.05 * k})
        return web.json_response({"videos": videos, "control": {"agreement": 0.83, "straight_line": 0.55}})

    async def csv(self, request):
        rows = [f'{self.ids[n]},{i["start"]},{i["end"]},{i["label"]}' for n in self.own for i in self.own[n]]
        return web.Response(text="\n".join(["video,start,end,label", *rows]) + "\n", content_type="text/csv")
