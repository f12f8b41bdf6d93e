"""Train a study's SFT trunks and probe their checkpoints."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("sft", "Train a study's SFT trunks and probe their checkpoints."))
