"""Before: threads, a queue, and a request that is refused goes back into the queue.

    IMAGES_KEY=secret python -m examples.images.original images.txt --server http://127.0.0.1:8000

It works, and most of what it sends is refused: a thread learns that it came too early by coming too early.
`tag.py` beside it does the same without a refusal.
"""

import argparse
import json
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import requests

MODELS = ("room", "view", "style", "objects", "quality", "logo")


def work(url: str, key: str, tasks: queue.Queue[Any], answers: dict[Any, Any], times: list[float]) -> None:
    """Send what is in the queue, until a poison pill comes out of it."""
    while (task := tasks.get()) is not None:
        image, model = task
        started = time.monotonic()
        params = {"model_id": model, "client_key": key, "image_url": image}
        response = requests.get(url, params=params, timeout=30)
        if response.status_code == 429:
            tasks.put(task)  # later, perhaps
        else:
            response.raise_for_status()
            answers[task] = response.json()["tags"]
            times.append(time.monotonic() - started)
        tasks.task_done()


def main() -> None:
    """Tag the images of a file and print one line of statistics."""
    parser = argparse.ArgumentParser(description="Tag images; the service's key is in IMAGES_KEY.")
    parser.add_argument("images", type=Path, help="a file with the URL of an image in each line")
    parser.add_argument("--server", required=True, help="base URL of the service")
    parser.add_argument("--region", choices=("us", "eu"), default="us")
    parser.add_argument("--threads", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("build/images/original.json"))
    options = parser.parse_args()
    url, key = f"{options.server}/{options.region}/segmentation", os.environ["IMAGES_KEY"]
    images = options.images.read_text(encoding="utf-8").split()

    tasks: queue.Queue[Any] = queue.Queue()
    answers: dict[Any, Any] = {}
    times: list[float] = []
    started = time.monotonic()
    for image in images:
        for model in MODELS:
            tasks.put((image, model))
    threads = [
        threading.Thread(target=work, args=(url, key, tasks, answers, times), daemon=True)
        for _ in range(options.threads)
    ]
    for thread in threads:
        thread.start()
    tasks.join()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started

    by_image = {image: {model: answers[image, model] for model in MODELS} for image in images}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(by_image, indent=1), encoding="utf-8")
    print(
        f"[{len(times)}] requests processed in [{seconds:.1f}] seconds with average time "
        f"[{1000 * sum(times) / len(times):.1f}] ms, total throughput: [{len(times) / seconds:.2f}] rps"
    )


if __name__ == "__main__":
    main()
