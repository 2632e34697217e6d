"""After: the same threads, and no request is refused, because none is sent before the service would take it.

    IMAGES_KEY=secret python -m examples.images.tag images.txt --server http://127.0.0.1:8000 --region eu

Copy this page: `Images.tag` is an ordinary function around `requests`, and the runner calls it in threads.
The key is in the URL, as the service wants it, so nothing here ever shows a URL.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import requests

from headgate import Runner

MODELS = ("room", "view", "style", "objects", "quality", "logo")
THREADS = 32
LIMIT = "requests=10/s:burst=10"

# At its most talkative, the library below `requests` logs the URLs.
logging.getLogger("urllib3").setLevel(logging.INFO)


class Images:
    """The service, in one region."""

    def __init__(self, server: str, region: str, key: str) -> None:
        self._url = f"{server}/{region}/segmentation"
        self._session = requests.Session()
        self._session.params = {"client_key": key}  # in each request, and in no argument or result
        self._session.mount(server, requests.adapters.HTTPAdapter(pool_maxsize=THREADS))

    def tag(self, image: str, model: str) -> dict[str, float]:
        """Return the certainty of each tag.

        Raises:
            requests.RequestException: what went wrong, without the URL. With `response`, if one came: it
                tells the runner whether, and when, another attempt makes sense.
        """
        params = {"model_id": model, "image_url": image}
        failure: requests.RequestException | None = None
        try:
            response = self._session.get(self._url, params=params, timeout=30)
        except requests.RequestException as error:
            failure = type(error)(f"no answer: {type(error).__name__}")
        if failure is not None:
            raise failure  # from here: inside the `except`, it would carry the other one along, key and all
        if not response.ok:
            raise requests.HTTPError(f"HTTP {response.status_code}", response=response)
        tags: dict[str, float] = response.json()["tags"]
        return tags


def main() -> int:
    """Tag the images of a file and print one line of statistics; return 1 if something failed."""
    parser = argparse.ArgumentParser(description="Tag images; the service's key is in IMAGES_KEY.")
    parser.add_argument("images", type=Path, help="a file with the URL of an image in each line")
    parser.add_argument("--server", required=True, help="base URL of the service")
    parser.add_argument("--region", choices=("us", "eu"), default="us")
    parser.add_argument("--limit", default=LIMIT, help="what the service allows (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/images/tags.json"))
    options = parser.parse_args()
    service = Images(options.server, options.region, os.environ["IMAGES_KEY"])
    images = options.images.read_text(encoding="utf-8").split()

    runner = Runner(service.tag, options.limit, max_concurrent=THREADS)
    tasks = [(image, model) for image in images for model in MODELS]
    for image, model in tasks:
        runner.schedule(image, model)
    results, exceptions = runner.run()

    by_image: dict[str, dict[str, dict[str, float] | None]] = {image: {} for image in images}
    for (image, model), tags, errors in zip(tasks, results, exceptions, strict=True):
        by_image[image][model] = tags
        if tags is None:
            print(f"{model} of {image}: {errors[-1] if errors else 'not done'}", file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(by_image, indent=1), encoding="utf-8")

    figures = runner.statistics()
    print(
        f"[{figures.succeeded}] requests processed in [{figures.seconds:.1f}] seconds with average time "
        f"[{1000 * (figures.mean or 0):.1f}] ms, total throughput: [{figures.throughput or 0:.2f}] rps"
    )
    return int(None in results)


if __name__ == "__main__":
    sys.exit(main())
