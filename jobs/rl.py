"""Train a study's RL branches and probe their checkpoints."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("rl", "Train a study's RL branches and probe their checkpoints."))
