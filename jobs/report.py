"""Rebuild a study's tables and report from what is done."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("report", "Rebuild a study's tables and report from what is done."))
