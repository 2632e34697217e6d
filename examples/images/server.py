"""A strict image-tagging service on this machine: N requests a second, and a log of what it refused.

    IMAGES_KEY=secret python -m examples.images.server --rate 10 --log build/images/server.jsonl

It serves two regions, `/us` and `/eu`, each with a bucket of its own:

    GET /us/segmentation?model_id=room&client_key=secret&image_url=http://images.example/1.jpg

The log tells region, status, model and image of each request, one JSON object a line, and never the key.
This file knows nothing of headgate, so that it can judge clients that use it.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from aiohttp import web

REGIONS = ("us", "eu")
LABELS = {
    "room": "kitchen bathroom bedroom office hallway garage".split(),
    "view": "garden street sea mountains river city".split(),
    "style": "modern rustic classic industrial nordic colonial".split(),
    "objects": "sofa lamp fireplace bath table piano".split(),
    "quality": "sharp blurred dark bright tilted noisy".split(),
    "logo": "none agency portal broker newspaper bank".split(),
}
SECONDS_AT_FULL_SIZE = 1.16
REFUSAL_SECONDS = 0.05  # there and back


class Bucket:
    """Holds `rate` requests, gains `rate` a second, and is full at first. Refused ones take nothing out."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._level = float(rate)
        self._filled_at = time.monotonic()

    def admits(self, now_seconds: float) -> bool:
        """Say whether a request may pass at this instant, and take it out if so."""
        gained = (now_seconds - self._filled_at) * self._rate
        self._level = min(self._level + gained, self._rate)
        self._filled_at = now_seconds
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Service:
    """The service: a key, a limiter for each region, a mean time for an answer in seconds, and a log."""

    def __init__(self, key: str, *, rate: int, latency: float, log: Path) -> None:
        self._key = key.encode()
        self._buckets = {region: Bucket(rate) for region in REGIONS}
        self._latency = latency
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("w", encoding="utf-8", buffering=1)

    async def segmentation(self, request: web.Request) -> web.Response:
        """Answer one request, in its time."""
        region = request.match_info["region"]
        model, image = request.query.get("model_id", ""), request.query.get("image_url", "")
        status, answer = self._judge(region, request.query.get("client_key", ""), model, image)
        seen = {"at": time.time(), "region": region, "status": status, "model": model, "image": image}
        self._log.write(json.dumps(seen) + "\n")
        await asyncio.sleep(random.uniform(0.5, 1.5) * self._latency if status == 200 else REFUSAL_SECONDS)
        return web.json_response(answer, status=status)

    def _judge(self, region: str, key: str, model: str, image: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer; it is here that a request is charged."""
        if region not in self._buckets:
            return 404, {"error": f"expected one of the regions {', '.join(REGIONS)}"}
        # In constant time: how long a comparison takes must not tell how much of a guess was right.
        if not hmac.compare_digest(key.encode(), self._key):
            return 401, {"error": "wrong client_key"}
        if model not in LABELS or not image:
            return 400, {"error": f"expected an image_url, and a model_id of {', '.join(LABELS)}"}
        if not self._buckets[region].admits(time.monotonic()):
            return 429, {"error": "too many requests in a second"}
        return 200, {"model": model, "image": image, "tags": make_tags(model, image)}


def make_tags(model: str, image: str) -> dict[str, float]:
    """Make up two tags of an image with their certainties: the same image always gets the same ones."""
    digest = hashlib.sha256(f"{model} {image}".encode()).digest()
    best_first = sorted(zip(LABELS[model], digest, strict=False), key=lambda tag: -tag[1])
    return {label: round(0.5 + certainty / 512, 2) for label, certainty in best_first[:2]}


async def serve(service: Service, port: int) -> None:
    """Listen on this machine alone, say where, and answer until cancelled."""
    app = web.Application()
    app.router.add_get("/{region}/segmentation", service.segmentation)
    runner = web.AppRunner(app, access_log=None)  # that log would tell the key, which is in the URL
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the options and serve until interrupted."""
    parser = argparse.ArgumentParser(description="A strict image-tagging service; IMAGES_KEY holds its key.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--rate", type=int, default=10, help="requests a second (default: %(default)s)")
    parser.add_argument(
        "--latency",
        type=float,
        default=SECONDS_AT_FULL_SIZE,
        help="mean seconds of an answer (default: %(default)s)",
    )
    parser.add_argument("--log", type=Path, default=Path("build/images/server.jsonl"))
    options = parser.parse_args()
    key = os.environ.get("IMAGES_KEY") or parser.error("IMAGES_KEY is not set")
    service = Service(key, rate=options.rate, latency=options.latency, log=options.log)
    try:
        asyncio.run(serve(service, options.port))
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
