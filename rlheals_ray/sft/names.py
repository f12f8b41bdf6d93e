"""Names of the base's and the trunk's checkpoints; a name is also the path under checkpoints/."""

BASE = "base"


def trunk_checkpoint(seed: int, step: int) -> str:
    """`sft/seed=0/step=000120`."""
    return f"sft/seed={seed}/step={step:06d}"
