"""Probe every checkpoint of a study that exists."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("evaluate", "Probe every checkpoint of a study that exists."))
