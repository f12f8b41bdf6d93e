"""Show what is done, running, failed and left of a study."""

import sys

from rlheals_ray.grid.status_command import main

if __name__ == "__main__":
    sys.exit(main())
