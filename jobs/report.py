"""Rebuild a study's tables and report from what is done, or with --compare A B lay two studies side by side."""

import sys

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if any(argument.partition("=")[0] == "--compare" for argument in arguments):
        from rlheals_ray.report.command_compare import main

        sys.exit(main())
    if {"-h", "--help"} & set(arguments):
        from rlheals_ray.report.command_compare import usage

        print(usage())
        print("Or, for one study:\n")
    from rlheals_ray.grid.command import main as study

    sys.exit(study("report", "Rebuild a study's tables and report from what is done."))
