"""Compare a study's checkpoints: singular values and rotations."""

import sys

from rlheals_ray.grid.command import main

if __name__ == "__main__":
    sys.exit(main("spectra", "Compare a study's checkpoints: singular values and rotations."))
