"""Probe every checkpoint of a study that exists; or check a task."""

import sys

from rlheals_ray.grid.command import main
from rlheals_ray.tasks import command_check

WHAT = (
    "Probe every checkpoint of a study that exists. With --check-task NAME [option=value ...] in place of a study: "
    "check that a task keeps every promise that studies rely on."
)

if __name__ == "__main__":
    sys.exit(command_check.main() if command_check.asked(sys.argv[1:]) else main("evaluate", WHAT))
