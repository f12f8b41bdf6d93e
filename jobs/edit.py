"""Write rotation edits and their controls: a study's, probed as well, or with --donor those of any two checkpoints."""

import sys

if __name__ == "__main__":
    if any(argument.partition("=")[0] == "--donor" for argument in sys.argv[1:]):
        from rlheals_ray.spectra.command_edit import main

        sys.exit(main())
    from rlheals_ray.grid.command import main as study

    what = "Write and probe a study's rotation edits and their controls (any two checkpoints: --donor DIR --help)."
    sys.exit(study("edit", what))
