"""How much memory a training worker, an engine and a task of held-out losses need; see DESIGN's `--plan`.

Of P float32 parameters over N workers, between two updates and with gradients there (bytes):

| mode | weights | gradients | AdamW's moments | more |
|---|---|---|---|---|
| none, ddp of one | 4P | 4P | 8P | |
| ddp | 4P | 4P | 8P | 4P: the reducer's buckets |
| fsdp2 | 4P/N | 4P/N | 8P/N | one layer gathered, with its gradient |
| zero2 | 4P | 4P/N | 8P/N | 4P/N: its part of the weights once more |
| zero3 | 4P/N | 4P/N | 8P/N | 4P/N: as zero2; one layer gathered |

The first rows are ZeRO's 16 bytes a parameter (Rajbhandari et al. 2020, section 3.1, all in float32). Every worker
reads the whole model before it is divided, so it never needs less than 4P.
"""

from __future__ import annotations

from rlheals_ray.config import Sharding, Study
from rlheals_ray.grid.model_size import FLOAT32, ModelSize, model_size

GIB = 2**30

GENERATOR_GIB, LEARNER_GIB = 1.6, 1.2
"""Resident memory of an engine and of a training worker beyond their weights: measured on CPUs."""

TASK_GIB = 1.0
"""Resident memory of a task that reads a model, beyond the model: measured 0.63 GiB on a CPU."""

_LOGITS = 1 << 26
"""sft/losses.py says the same, and loads torch."""

_WIDTH = {"float32": 4, "bfloat16": 2}


def training_bytes(parameters: int, sharding: Sharding, workers: int, layer: int = 0) -> dict[str, int]:
    """Bytes of one worker, by what they are; layer: parameters of the largest layer."""
    whole = FLOAT32 * parameters
    part = whole // workers
    gathered = 2 * FLOAT32 * layer
    if workers == 1:
        return {"weights": whole, "gradients": whole, "optimiser": 2 * whole}
    if sharding == "fsdp2":
        return {"weights": part, "gradients": part, "optimiser": 2 * part, "gathered": gathered}
    if sharding == "zero2":
        return {"weights": whole, "gradients": part, "optimiser": 2 * part, "master": part}
    if sharding == "zero3":
        more = {"master": part, "gathered": gathered}
        return {"weights": part, "gradients": part, "optimiser": 2 * part, **more}
    return {"weights": whole, "gradients": whole, "optimiser": 2 * whole, "buckets": whole}


def worker_bytes(study: Study) -> int:
    """Of one training worker, activations apart."""
    size = model_size(study)
    return int(LEARNER_GIB * GIB) + max(sum(learner(study, size).values()), FLOAT32 * size.parameters)


def learner(study: Study, size: ModelSize) -> dict[str, int]:
    """Bytes of one worker's model, gradients, optimiser and, with a KL penalty, frozen reference."""
    workers = max(study.sft.workers, study.rl.workers)
    layer = size.matrix_bytes(tuple(size.matrices), 1) // FLOAT32
    held = training_bytes(size.parameters, study.sft.sharding, workers, layer)
    if study.rl.kl_coefficient > 0:
        divided = workers if study.sft.sharding in ("fsdp2", "zero3") else 1
        held["reference"] = FLOAT32 * size.parameters // divided
    return held


def held_back_bytes(study: Study, *, learns: bool) -> int:
    """What one group holds once: the weights it publishes to the engines; on rank 0, a state gathered for saving."""
    size, workers = model_size(study), max(study.sft.workers, study.rl.workers)
    published = FLOAT32 * size.parameters if learns else 0
    gathered = size.state_bytes if workers > 1 and study.sft.sharding == "fsdp2" else 0
    return max(published, gathered)


def engine_bytes(study: Study) -> int:
    """Of one engine: its weights, its key-value cache, and the rest of its process."""
    size = model_size(study)
    weights = _WIDTH[study.rollout.dtype] * size.parameters
    cache = study.rollout.kv_cache_mib << 20
    return int(GENERATOR_GIB * GIB) + weights + cache - _MEASURED_CACHE


_MEASURED_CACHE = 128 << 20
"""Of the engine whose memory was measured: part of GENERATOR_GIB."""


def losses_bytes(study: Study) -> dict[str, int]:
    """Of one task of held-out losses: a float32 model, and a batch's logits, as they are, of answers, as log p."""
    size = model_size(study)
    longest = study.rollout.max_model_len * size.vocabulary
    batch = min(max(_LOGITS, longest), study.evaluation.problems * longest)
    return {
        "weights": FLOAT32 * size.parameters,
        "logits": 3 * FLOAT32 * batch,
        "process": int(TASK_GIB * GIB),
    }


def activation_bytes(size: ModelSize, tokens: int, precision: str, checkpointing: bool) -> int:
    """Of `tokens` in one forward pass, at most, attention's scores and padding apart.

    34 bytes a token, layer and hidden element in 16 bits (Korthikanti et al. 2022, section 4.1, without the scores),
    2 where layers are computed again; and the logits in float32 with their gradient.
    """
    width = _WIDTH[precision]
    a_layer = (2 if checkpointing else 34) * size.hidden * width // 2
    return tokens * (size.layers * a_layer + 2 * FLOAT32 * size.vocabulary)


def memory_lines(study: Study) -> list[str]:
    """For the plan: what a worker, an engine and a task of held-out losses hold."""
    size = model_size(study)
    workers = max(study.sft.workers, study.rl.workers)
    held = learner(study, size)
    parts = " + ".join(f"{name} {_text(value)}" for name, value in held.items())
    micro = study.rl.micro_batch or study.rl.episodes // workers // study.rl.minibatches
    longest = study.rollout.max_model_len
    rl = activation_bytes(size, micro * longest, study.rl.precision, study.rl.gradient_checkpointing)
    kept = size.kv_per_token * _WIDTH[study.rollout.dtype]
    tokens = (study.rollout.kv_cache_mib << 20) // kept if kept else 0
    where = "; with offload what is divided is in the CPU's memory" if study.sft.offload else ""
    return [
        f"model: {size.parameters:,} parameters, {size.layers} layers of width {size.hidden}",
        f"memory per worker ({study.sft.sharding} over {workers}): {parts} = {_text(sum(held.values()))}, and "
        f"{LEARNER_GIB} GiB for the process{where}; a pass of RL over {micro} episodes adds up to {_text(rl)} if all "
        f"are {longest} tokens long",
        f"memory per engine: weights {_text(_WIDTH[study.rollout.dtype] * size.parameters)}, cache "
        f"{study.rollout.kv_cache_mib} MiB ({tokens:,} tokens), and {GENERATOR_GIB - 0.125:.1f} GiB for the process",
        losses_line(study),
    ]


def losses_line(study: Study) -> str:
    """For the plan: the tasks of held-out losses, of which all may be there at once."""
    held, trunks = losses_bytes(study), len(study.seeds) * len(study.sft.recipes)
    parts = " + ".join(f"{name} {_text(value)}" for name, value in held.items())
    return (
        f"memory per task of held-out losses: {parts} = {_text(sum(held.values()))}; {2 * trunks} such tasks, when the "
        "trunks are done, of which a node runs as many at a time as it has CPUs and memory for"
    )


def _text(value: int) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB else f"{value / 2**20:.1f} MiB"
