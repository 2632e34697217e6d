"""Put many videos into the source: a million lines take no more memory than a batch of them.

python -m examples.video.feed build/video/source.db < videos.txt
"""

import argparse
import sys
from pathlib import Path

from examples.video.source import Source


def main() -> None:
    """Send a message for each line of the standard input."""
    parser = argparse.ArgumentParser(description="Put a video into the source for each line of the input.")
    parser.add_argument("source", type=Path, help="the source's file")
    source = Source(parser.parse_args().source)
    count = source.send(video for line in sys.stdin if (video := line.strip()))
    print(f"{count:,} videos put in; {len(source):,} wait")
    source.close()


if __name__ == "__main__":
    main()
