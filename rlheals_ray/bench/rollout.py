"""Tokens per second of the generator pool, beside bare vLLM and beside the published procedure.

The pool's clock is its consumer's: from the call of `Pool.run` to the episodes in the caller's hands, so that
leases, Ray, prompts, judging and the way back all count. The baselines' clocks run inside their own processes
around the generation alone.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.laboratory import THREADS, Laboratory, add_model_options, laboratory
from rlheals_ray.bench.measure import Figure, Outcome, Ratio, alternate, at_least
from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.vllm_environment import ENVIRONMENT
from rlheals_ray.tasks import get_task

MODES = ("single-turn", "multi-turn")


@dataclass(frozen=True)
class Run:
    """One timed generation of a set of episodes."""

    tokens: int
    """Written by the model."""
    turns: int
    seconds: float
    parts: Mapping[str, float]
    """Seconds that the runner itself tells apart."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--episodes", type=positive, default=2048, help="of the pool and of bare vLLM")
    parser.add_argument("--one-at-a-time", type=positive, default=128, help="episodes of transformers")
    parser.add_argument("--max-num-seqs", type=positive, default=256, help="sequences in the engine's batch")
    parser.add_argument(
        "--attempts", type=positive, default=3, help="turns of an episode, at most, in multi-turn"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=40)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    add_model_options(parser)


def run(options: Namespace) -> Outcome:
    with laboratory(options, [f"rollout.max_num_seqs={options.max_num_seqs}"]) as lab:
        ratios: list[Ratio] = []
        figures: list[Figure] = []
        bare = _start(BareVllm, lab)
        single = _start(OneAtATime, lab)
        lab.session.pool.wait_ready()
        ray.get([bare.ready.remote(), single.ready.remote()])
        for mode in options.modes:
            arms = _arms(
                lab, bare, single, options, attempts=1 if mode == "single-turn" else options.attempts
            )
            alternate(arms, 1)  # first batches compile, allocate and load the weights
            _compare(mode, alternate(arms, options.repetitions), ratios, figures)
        return Outcome(lab.settings(options), ratios, figures, _notes(options))


def _start(runner: type, lab: Laboratory) -> Any:
    """A baseline in a process of its own, with the generators' environment."""
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(THREADS)}
    actor = ray.remote(runner).options(num_cpus=1, runtime_env={"env_vars": environment})
    return actor.remote(str(lab.policy), lab.study.task, lab.study.rollout)


def _arms(
    lab: Laboratory, bare: Any, single: Any, options: Namespace, attempts: int
) -> dict[str, Callable[[int], Run]]:
    sampling = Sampling(options.temperature, options.max_new_tokens, attempts, logprobs=True)

    def requests(repetition: int, count: int) -> list[EpisodeRequest]:
        return lab.requests(count, (attempts, repetition))

    def pool(repetition: int) -> Run:
        wanted = requests(repetition, options.episodes)
        start = time.perf_counter()
        rollout = lab.session.pool.run(lab.load, wanted, sampling, Weights("bench"))
        seconds = time.perf_counter() - start
        return Run(
            tokens=sum(episode.tokens for episode in rollout.episodes),
            turns=sum(len(episode.turns) for episode in rollout.episodes),
            seconds=seconds,
            parts={
                "in generator": rollout.seconds,
                "in engine": rollout.seconds_engine,
                "judging": rollout.seconds_judge,
            },
        )

    def vllm(seeded: bool) -> Callable[[int], Run]:
        return lambda repetition: ray.get(
            bare.run.remote(requests(repetition, options.episodes), sampling, seeded)
        )

    def transformers(repetition: int) -> Run:
        return ray.get(single.run.remote(requests(repetition, options.one_at_a_time), sampling))

    return {
        "pool": pool,
        "bare vLLM": vllm(seeded=True),
        "bare vLLM, unseeded": vllm(seeded=False),
        "transformers, one at a time": transformers,
    }


def _compare(
    mode: str, runs: Mapping[str, Sequence[Run]], ratios: list[Ratio], figures: list[Figure]
) -> None:
    rates = {
        arm: Figure(f"{mode}, {arm}", "tokens/s", tuple(run.tokens / run.seconds for run in made))
        for arm, made in runs.items()
    }
    targets = {"bare vLLM": at_least(0.95), "transformers, one at a time": at_least(20)}
    ratios += [
        rates["pool"].over(rates[arm], f"{mode}: pool ÷ {arm}", target=targets.get(arm))
        for arm in rates
        if arm != "pool"
    ]
    for arm, made in runs.items():
        figures.append(rates[arm])
        figures.append(Figure(f"{mode}, {arm}, whole run", "s", tuple(run.seconds for run in made)))
        lengths = tuple(run.tokens / run.turns for run in made)
        figures.append(Figure(f"{mode}, {arm}, length of an answer", "tokens", lengths))
        figures.append(Figure(f"{mode}, {arm}, answers", "", tuple(float(run.turns) for run in made)))
        for part in made[0].parts:
            seconds = tuple(run.parts[part] for run in made)
            figures.append(Figure(f"{mode}, {arm}, {part}", "s", seconds))


def _notes(options: Namespace) -> list[str]:
    return [
        f"Model: {options.model or 'nano base, then demonstrations'}; the same weights in all of them.",
        "pool: wall time of the caller, prompts, judge, leases and Ray included; the weights are loaded before.",
        "bare vLLM: LLM.generate over all prompts at once, same engine and sampling settings, log-probabilities and "
        "seeds included; prompts are tokenised before its clock starts. Single-turn: generation only. Multi-turn: "
        "generate the batch, decode and judge it, build the next prompts, generate again.",
        "bare vLLM, unseeded: the same without a seed per request, what reproducible episodes cost.",
        "transformers: model.generate with one prompt at a time (the published procedure), key-value cache on; "
        "log-probabilities are not asked for. Its rate is over whole runs; nothing is extrapolated.",
    ]


class BareVllm:
    """What one would write with vLLM alone; one engine in one process."""

    def __init__(self, directory: str, task: TaskSettings, settings: RolloutSettings) -> None:
        from vllm import LLM

        from rlheals_ray.models.chat import ChatFormat

        self._task = get_task(task.name, **task.options)
        self._chat = ChatFormat.of(directory)
        # The engine settings of rollout/vllm_engine.py, weights read from disk.
        self._llm = LLM(
            directory,
            skip_tokenizer_init=True,
            dtype=settings.dtype,
            enforce_eager=True,
            kv_cache_memory_bytes=settings.kv_cache_mib << 20,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=max(8192, settings.max_model_len),
            # A seeded request whose prompt is split over two steps fails on CPU ("does not use offset").
            enable_chunked_prefill=False,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
        )
        self._max_model_len = settings.max_model_len

    def ready(self) -> None:
        """Answers when the engine is up."""

    def run(self, requests: Sequence[EpisodeRequest], sampling: Sampling, seeded: bool) -> Run:
        """All episodes, turn by turn; the clock stands still while the first prompts are tokenised."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        def params(request: EpisodeRequest, turn: int) -> SamplingParams:
            return SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                seed=request.turn_seed(turn) if seeded and sampling.temperature > 0 else None,
                logprobs=0,
                stop_token_ids=sorted(self._chat.stop_ids),
                detokenize=False,
            )

        contexts = [self._chat.first_turn(self._task.prompt(request.problem)) for request in requests]
        active = list(range(len(requests)))
        tokens = turns = 0
        judging = 0.0
        start = time.perf_counter()
        for turn in range(sampling.max_attempts):
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=contexts[i]) for i in active],
                [params(requests[i], turn) for i in active],
                use_tqdm=False,
            )
            turns += len(outputs)
            tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            if sampling.max_attempts == 1:
                break  # bare generation: nobody reads the answers
            generated = time.perf_counter()
            going_on = []
            for i, output in zip(active, outputs, strict=True):
                ids = list(output.outputs[0].token_ids)
                verdict = self._task.judge(requests[i].problem, self._chat.answer(ids))
                if not verdict.solved:
                    ended = output.outputs[0].finish_reason == "stop"
                    contexts[i] += ids + self._chat.next_turn(self._task.reply(verdict), ended=ended)
                    if len(contexts[i]) + sampling.max_new_tokens <= self._max_model_len:
                        going_on.append(i)
            active = going_on
            judging += time.perf_counter() - generated
        seconds = time.perf_counter() - start
        return Run(tokens, turns, seconds, {"judging and next prompts": judging})


class OneAtATime:
    """The published procedure: `model.generate` for one prompt after the other."""

    def __init__(self, directory: str, task: TaskSettings, settings: RolloutSettings) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from rlheals_ray.models.chat import ChatFormat

        torch.set_num_threads(THREADS)
        self._task = get_task(task.name, **task.options)
        self._chat = ChatFormat.of(Path(directory))
        self._model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, settings.dtype)
        ).eval()
        self._max_model_len = settings.max_model_len

    def ready(self) -> None:
        """Answers when the model is loaded."""

    def run(self, requests: Sequence[EpisodeRequest], sampling: Sampling) -> Run:
        """All episodes, one after the other."""
        import torch

        stop = sorted(self._chat.stop_ids)
        choose: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            choose = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(requests[0].turn_seed(0) % 2**32)
        tokens = turns = 0
        start = time.perf_counter()
        for request in requests:
            context = self._chat.first_turn(self._task.prompt(request.problem))
            for turn in range(sampling.max_attempts):
                prompt = torch.tensor([context])
                output = self._model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=stop,
                    pad_token_id=stop[0],
                    **choose,
                )
                ids = output[0, len(context) :].tolist()
                tokens, turns = tokens + len(ids), turns + 1
                if turn + 1 == sampling.max_attempts:
                    break
                verdict = self._task.judge(request.problem, self._chat.answer(ids))
                if verdict.solved:
                    break
                ended = ids[-1] in self._chat.stop_ids
                context = context + ids + self._chat.next_turn(self._task.reply(verdict), ended=ended)
                if len(context) + sampling.max_new_tokens > self._max_model_len:
                    break
        return Run(tokens, turns, time.perf_counter() - start, {})
