"""What an RL branch's updates cost, in FLOPs per parameter of the model: what a control of healing is given.

A forward pass costs 2 FLOPs per parameter and token, a backward pass twice that (Kaplan et al. 2020, section 2.1,
attention over the context left out): 2 per token generated or scored, 6 per token trained on. Light on purpose: the
sweep's trials import this.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from rlheals_ray.config import RLSettings

GENERATE = SCORE = 2
TRAIN = 6


def flops_per_token(settings: RLSettings, update: int) -> int:
    """FLOPs per parameter that update `update` (from 1) spends on each token of its episodes, prompts included.

    Counted are the passes that the algorithm makes:

    - the engine's, once over every token: a prompt and a reply are read, an answer is written (an episode's later
      turns find the earlier ones in the engine's cache);
    - before learning, the policy's, for advantages and ratios. PPO with one step per update learns from this
      very pass; TRL's trainers always make it apart;
    - the frozen reference's, with a KL penalty;
    - for each epoch a forward and a backward pass, from the end of the critic's warm-up on.

    Not counted: the pass after an update, which only measures approx_kl, as probes do; the critic, a head on the
    policy's hidden states; what is computed again to save memory, as activations by gradient checkpointing, or
    PPO's one step in micro-batches, which scores apart: two studies that learn the same spend the same; padding.
    """
    learns = settings.algorithm != "ppo" or update > settings.critic_warmup
    one_step = settings.epochs == settings.minibatches == 1
    flops = GENERATE
    if not (settings.algorithm == "ppo" and one_step and learns):
        flops += SCORE
    if settings.kl_coefficient > 0:
        flops += SCORE
    if learns:
        flops += TRAIN * settings.epochs
    return flops


def compute_by_update(settings: RLSettings, tokens: Sequence[int]) -> list[int]:
    """FLOPs per parameter spent by the end of each update; tokens: of each update's episodes (`episode_tokens`)."""
    return list(accumulate(flops_per_token(settings, n) * count for n, count in enumerate(tokens, 1)))
