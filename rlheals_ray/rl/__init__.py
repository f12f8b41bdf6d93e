"""Stage 2: RL branches. Turn-level PPO as in the paper, fed by the generator pool, on Ray Train."""
