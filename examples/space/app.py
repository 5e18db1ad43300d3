"""`unigrpo app` as a Space: the page of one policy, for everybody who opens it."""

import sys

from unigrpo.runs.cli import main


if __name__ == "__main__":
    sys.exit(main(["app", "builtin:shapes", "--host", "0.0.0.0", "--port", "7860"]))
