"""Write and probe a study's rotation edits and their controls."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("edit", "Write and probe a study's rotation edits and their controls."))
