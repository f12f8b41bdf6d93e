"""vLLM behind the engine seam, in one process, with weights that can be replaced while it is warm.

Import this module only inside a generator's process: vLLM changes process-wide settings (it makes
torch.set_num_threads a no-op) and reads its environment variables (vllm_environment.py) when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from rlheals_ray.config import RolloutSettings
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.rollout.engine import Completion
from rlheals_ray.rollout.episode import Sampling


class WeightReceiver:
    """vLLM worker extension: replaces the weights in place."""

    model_runner: Any

    def load(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.model_runner.reload_weights(weights_iterator=tensors, is_checkpoint_format=True)
        # With tied embeddings on CPU the head was prepacked from the old embedding and would stay so.
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if head is not None and hasattr(head, "quant_method"):
            head.quant_method.process_weights_after_loading(head)

    def clear_nan(self) -> None:
        """Overwrite cached keys and values that are no numbers: weights of NaN leave them, and attention over a
        half-used block would carry them (0 × NaN) into what other weights are asked for."""
        for cache in self.model_runner.kv_caches:
            if not torch.isfinite(cache.sum(dtype=torch.float32)):
                cache.zero_()


class VllmEngine:
    """One vLLM engine. Log-probabilities are those of the sampling distribution, temperature included."""

    name = "vllm"

    def __init__(self, directory: Path, settings: RolloutSettings, stop_ids: Iterable[int]) -> None:
        """Build the engine for the architecture in `directory`; weights come later (load_format dummy)."""
        self._stop = sorted(stop_ids)
        self._llm = LLM(
            str(directory),
            load_format="dummy",
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
            worker_extension_cls=f"{__name__}.{WeightReceiver.__name__}",
            **_transfer(settings),
        )
        self.can_receive = bool(_transfer(settings))
        """Whether nccl_sync.py may send weights straight to this engine's GPU."""
        self._engine = self._llm.llm_engine
        self._expected = _tensor_names(directory)

    def submit(self, request_id: str, ids: Sequence[int], *, sampling: Sampling, seed: int) -> None:
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_new_tokens,
            seed=seed if sampling.temperature > 0 else None,
            logprobs=0 if sampling.logprobs else None,
            stop_token_ids=self._stop,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(request_id, TokensPrompt(prompt_token_ids=list(ids)), params)

    def step(self) -> list[Completion]:
        return [_completion(output) for output in self._engine.step() if output.finished]

    def busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def abort(self) -> None:
        unfinished = list(self._engine.output_processor.request_states)
        self._engine.abort_request(unfinished, internal=True)

    def score(self, ids: Sequence[int]) -> list[float]:
        if self.busy():
            raise RuntimeError("a sequence cannot be scored while requests are running")
        # Two requests. That for the log-probabilities of a prompt never reads the prefix cache; what other
        # requests are served from it shows in the token after the prefix alone, and must be asked for first.
        last = self._serve(ids[:-1], logprobs=1, logprob_token_ids=[ids[-1]]).outputs[0].logprobs[0]
        prompt = self._serve(ids, prompt_logprobs=0).prompt_logprobs
        inner = [at[token].logprob for token, at in zip(ids[1:-1], prompt[1:-1], strict=True)]
        return [*inner, last[ids[-1]].logprob]

    def _serve(self, ids: Sequence[int], **wanted: Any) -> Any:
        """One request on its own, for one token."""
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **wanted)
        self._engine.add_request("score", TokensPrompt(prompt_token_ids=list(ids)), params)
        while True:
            for output in self._engine.step():
                if output.finished:
                    return output

    def load_checkpoint(self, directory: Path) -> None:
        checkpoint = Checkpoint(directory)
        self.load_weights((name, checkpoint.tensor(name)) for name in checkpoint.names())

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        sent: set[str] = set()
        self._llm.collective_rpc("load", args=(_noting(tensors, sent),))
        self._renewed(sent)

    def connect(self, init_info: dict[str, Any]) -> None:
        """Meet the learner that sends by NCCL. UNTESTED: needs GPUs."""
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def receive(self, announced: Callable[[], dict[str, Any]]) -> None:
        """Take over the weights that the learner announces and sends by NCCL. UNTESTED: needs GPUs."""
        self._llm.start_weight_update()
        update_info = announced()
        if isinstance(update_info, Exception):
            raise update_info
        self._llm.update_weights({"update_info": update_info})
        self._llm.finish_weight_update()
        self._llm.shutdown_weight_transfer_engine()
        self._renewed(set(update_info["names"]))

    def _renewed(self, sent: set[str]) -> None:
        # The engine starts with random weights, and vLLM only logs what an update leaves out.
        if absent := self._expected - sent:
            raise ValueError(
                f"the update lacks {len(absent)} of the model's tensors, such as {min(absent)!r}"
            )
        # Cached keys and values belong to the old weights; serving them would be silently wrong.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache after a weight update: requests are still running")
        self._llm.collective_rpc("clear_nan")


def _transfer(settings: RolloutSettings) -> dict[str, Any]:
    """The option that lets a learner send by NCCL, where the study and the machine do."""
    if settings.weight_sync == "object_store" or not torch.cuda.is_available():
        return {}
    from vllm.config import WeightTransferConfig

    return {"weight_transfer_config": WeightTransferConfig(backend="nccl")}


def _noting(
    tensors: Iterable[tuple[str, torch.Tensor]], names: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        names.add(name)
        yield name, tensor


def _tensor_names(directory: Path) -> set[str]:
    """Names of the tensors that a checkpoint of this architecture holds, tied ones aside."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    tied = set(model.all_tied_weights_keys or {})
    return {name for name, _ in model.named_parameters()} - tied


def _completion(output: Any) -> Completion:
    sampled = output.outputs[0]
    ids = list(sampled.token_ids)
    logprobs = []
    if sampled.logprobs is not None:
        logprobs = [at[token].logprob for token, at in zip(ids, sampled.logprobs, strict=True)]
    return Completion(output.request_id, ids, logprobs, sampled.finish_reason == "stop")
