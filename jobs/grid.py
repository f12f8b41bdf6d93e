"""Map a recovery boundary: every stage of a study."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("grid", "Map a recovery boundary: every stage of a study."))
