"""How far a generator has come: counters that only grow, read while it works.

Light on purpose: the pool's own process reads them, and must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """What one process of a generator has done since it started."""

    process: str = ""
    """The process that did it, `<node's address>:<process id>`: a restarted generator has another."""
    submitted: int = 0
    """Turns handed to the engine."""
    steps: int = 0
    """Steps of the engine."""
    turns: int = 0
    """Turns judged."""
    episodes: int = 0
    """Episodes finished."""
    seconds_engine: float = 0.0
    """Inside the engine."""
    seconds_judge: float = 0.0
    """Decoding answers, judging them, and rendering prompts."""
