"""Compare a study's checkpoints, or with --a and --b any two: singular values and rotations."""

import sys

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if any(argument.partition("=")[0] in ("--a", "--b") for argument in arguments):
        from rlheals_ray.report import build_report
        from rlheals_ray.spectra.command_compare import main

        sys.exit(main(report=build_report))
    if {"-h", "--help"} & set(arguments):
        from rlheals_ray.spectra.command_compare import usage

        print(usage())
        print("Or, for the checkpoints of a study:\n")
    from rlheals_ray.grid.command import main as study

    sys.exit(study("spectra", "Compare a study's checkpoints: singular values and rotations."))
