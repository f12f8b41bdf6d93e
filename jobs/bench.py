"""Measure this system beside what one would otherwise use: ratios side by side."""

import sys

from rlheals_ray.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
