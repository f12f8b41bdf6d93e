"""The study as a whole: its units of work, the sweep of branches on Ray Tune, resume, the plan."""
