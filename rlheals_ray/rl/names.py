"""Names of branches' checkpoints; a name is also the path under checkpoints/."""


def branch_checkpoint(seed: int, sft_step: int, rl_step: int) -> str:
    """`rl/seed=0/sft_step=000120/rl_step=000030`."""
    return f"rl/seed={seed}/sft_step={sft_step:06d}/rl_step={rl_step:06d}"
