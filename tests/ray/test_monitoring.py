"""What a driver and its actors record arrives at Prometheus, with its tags, from a real Ray head.

The head is started by this very file as a program of its own: other tests hold a Ray in this process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = shutil.which("prometheus", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
CELL = "seed=0/sft_step=000004"
ROW = {
    "solved_at_1": 0.25, "approx_kl": 0.001, "weight_lag": 0, "seconds_sync": 0.5, "seconds_generate": 3.0,
    "seconds_learn": 2.0, "idle_share": 0.4, "value_loss": None, "updates": 1,
}  # fmt: skip


def monitored(port: int) -> None:
    """The program, until its input closes: a head that exports on `port`, a driver that records, a generator.

    Reads the generator's model from its input; prints what it made, as its episodes have it.
    """
    import ray

    from rlheals_ray import monitoring
    from rlheals_ray.config import RolloutSettings, TaskSettings
    from rlheals_ray.grid.progress import StageProgress
    from rlheals_ray.need import Need
    from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Weights
    from rlheals_ray.rollout.generator import GeneratorSettings, start_generator
    from rlheals_ray.rollout.load import CheckpointLoad
    from rlheals_ray.tasks import get_task

    ray.init("local", num_cpus=2, include_dashboard=False, _metrics_export_port=port, logging_level="ERROR")
    task = TaskSettings(name="tests.toy_task:ToyTask")
    rollout = RolloutSettings(engine="transformers", max_model_len=64)
    model = sys.stdin.readline().strip()
    generator = start_generator(GeneratorSettings(model, task, rollout, "watched"), threads=1, need=Need())

    monitoring.serve_study("watched")
    progress = StageProgress("rl", 8, "updates")
    progress.skip(2)
    progress.advance()
    monitoring.record_update(f"rl/{CELL}", {**ROW, "solved_at_1": 0.0})
    monitoring.record_update(f"rl/{CELL}", ROW)
    monitoring.record_update("rl/seed=1/sft_step=000004", {**ROW, "approx_kl": float("nan")})
    monitoring.CELLS_DONE.record(1, stage="rl")
    monitoring.CELLS_FAILED.record(1, stage="rl", problem="24")  # a tag that the metric does not have
    monitoring.SOLVED_AT_1.record(1, stage="rl")  # a tag too few
    monitoring.APPROX_KL.record("much", stage="rl", cell="seed=9")  # type: ignore[arg-type]
    for metric in monitoring.METRICS:
        metric.record(1.0, stage="every", **({"cell": ""} if "cell" in metric.tags else {}))

    problems = get_task(task.name).problems("id", "train", 4, seed=0)
    weights = Weights("toy")
    ray.get(generator.load.remote(CheckpointLoad(model), weights))
    made: dict[str, dict[str, int]] = {}
    for stage, seed in (("probe", ("probe",)), ("rl", (0, 4, 1)), ("rl", (0, 4, 2))):
        requests = [EpisodeRequest(problem, (*seed, problem.id)) for problem in problems]
        blocks = map(ray.get, generator.run.remote(requests, range(4), Sampling(1.0, 2, 2), weights))
        for episode in (e for block in blocks if isinstance(block, list) for e in block):
            assert isinstance(episode, Episode)
            counted = made.setdefault(stage, {"episodes": 0, "tokens": 0})
            counted["episodes"] += 1
            counted["tokens"] += sum(len(turn.completion_ids) for turn in episode.turns)
    print(
        json.dumps({"logs": ray._private.worker._global_node.get_logs_dir_path(), "made": made}), flush=True
    )
    sys.stdin.read()
    ray.shutdown()


@dataclass(frozen=True)
class Head:
    """A head that is up, and everything recorded."""

    address: str
    """Of its metrics."""
    logs: Path
    made: dict[str, dict[str, int]]
    """Stage to how many episodes and tokens the generator made."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    from tests.local_cluster import ENVIRONMENT, free_port

    port, directory = free_port(), tmp_path_factory.mktemp("watched")
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    with (directory / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdin and process.stdout
    from tests.toy_model import write_toy_model  # takes seconds, while the head starts

    print(write_toy_model(directory / "model"), file=process.stdin, flush=True)
    line = process.stdout.readline()
    assert line, (directory / "stderr").read_text()
    started = json.loads(line)
    yield Head(f"127.0.0.1:{port}", Path(started["logs"]), started["made"])
    process.stdin.close()
    process.wait(30)


Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scraped(address: str) -> tuple[Samples, dict[str, str]]:
    """What a scrape finds of ours: values by name and tags, summed over processes; and the kind of each family."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: Samples = {}
    for sample in (sample for family in families for sample in family.samples):
        tags = {
            tag: value for tag, value in sample.labels.items() if tag in ("study", "stage", "cell", "problem")
        }
        series = found.setdefault(sample.name, {})
        key = tuple(sorted(tags.items()))
        if tags.get("stage") == "every":
            continue
        series[key] = series.get(key, 0.0) + sample.value
    return found, {family.name: family.type for family in families}


def eventually(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `what` returns once that is something; fails after `seconds` with what came last."""
    end, last = time.monotonic() + seconds, "nothing came"
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except (OSError, LookupError) as error:
            last = repr(error)
        time.sleep(0.5)
    raise AssertionError(last)


def whole_scrape(head: Head) -> tuple[Samples, dict[str, str]]:
    """A scrape that has what driver and generator recorded last; raises LookupError for another."""
    found, kinds = scraped(head.address)
    episodes = found.get("ray_rlheals_episodes_total", {})
    if sum(episodes.values()) != 12 or "ray_rlheals_cells_done" not in found:
        raise LookupError({name: series for name, series in found.items() if "rlheals" in name})
    return found, kinds


def rl(**more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"study": "watched", "stage": "rl", **more}.items()))


def test_what_is_recorded_arrives_with_its_tags(head: Head) -> None:
    found, kinds = eventually(lambda: whole_scrape(head))
    probe = tuple(sorted({"study": "watched", "stage": "probe"}.items()))
    assert {stage: counts["episodes"] for stage, counts in head.made.items()} == {"probe": 4, "rl": 8}
    for unit in ("episodes", "tokens"):
        expected = {probe: head.made["probe"][unit], rl(): head.made["rl"][unit]}
        assert found[f"ray_rlheals_{unit}_total"] == expected
    assert all(0 < seconds < 60 for seconds in found["ray_rlheals_engine_seconds_total"].values())
    assert kinds["ray_rlheals_tokens"] == "counter" and kinds["ray_rlheals_stage_done"] == "gauge"
    assert found["ray_rlheals_stage_done"] == {rl(): 3} and found["ray_rlheals_stage_units"] == {rl(): 8}
    assert found["ray_rlheals_cells_done"] == {rl(): 1}
    # Each gauge has the last update's value; what is not finite is absent.
    other = rl(cell="seed=1/sft_step=000004")
    assert found["ray_rlheals_solved_at_1"] == {rl(cell=CELL): 0.25, other: 0.25}
    assert found["ray_rlheals_approx_kl"] == {rl(cell=CELL): 0.001}
    assert found["ray_rlheals_weight_lag"] == {rl(cell=CELL): 0, other: 0}
    assert found["ray_rlheals_generator_idle_share"] == {rl(cell=CELL): 0.4, other: 0.4}
    assert not any("problem" in dict(key) for series in found.values() for key in series)


def test_ray_exports_every_metric_under_the_name_that_queries_use(head: Head) -> None:
    from rlheals_ray.monitoring import METRICS

    found, _ = eventually(lambda: whole_scrape(head))
    assert {metric.exported for metric in METRICS} <= set(found)


def test_every_metric_of_a_node_that_the_dashboard_shows_is_exported(head: Head) -> None:
    found, _ = eventually(lambda: whole_scrape(head))
    board = json.loads((REPOSITORY / "cluster/grafana/rlheals_ray.json").read_text())
    asked = " ".join(t["expr"] for panel in board["panels"] for t in panel.get("targets", ()))
    rays = [
        name for name in ("ray_node_cpu_utilization", "ray_node_mem_used_host", "ray_tasks") if name in asked
    ]
    assert len(rays) == 3 and set(rays) <= set(found)


def test_a_worker_leaves_its_events_in_rays_own_log(head: Head) -> None:
    def lines() -> list[str]:
        logs = head.logs.glob("worker-*.err")
        return [line for log in logs for line in log.read_text().splitlines() if '"study"' in line]

    told = eventually(lambda: lines() if lines() else None)
    event = json.loads(told[0][told[0].index("{") :])
    assert (event["study"], event["stage"], event["event"]) == ("watched", "generator", "started")


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed; .ci/prometheus fetches it")
def test_prometheus_itself_scrapes_it(head: Head, tmp_path: Path) -> None:
    from tests.local_cluster import free_port

    (tmp_path / "prometheus.yml").write_text(
        f"scrape_configs: [{{job_name: ray, scrape_interval: 1s, static_configs: [{{targets: ['{head.address}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [str(PROMETHEUS), f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address={address}",
             f"--storage.tsdb.path={tmp_path / 'data'}"],
            stdout=log, stderr=log,
        )  # fmt: skip

    def answer() -> list[dict[str, Any]]:
        query = urllib.parse.quote("sum by (study, stage) (ray_rlheals_tokens_total{stage!='every'})")
        with urllib.request.urlopen(f"http://{address}/api/v1/query?query={query}", timeout=5) as found:
            rows: list[dict[str, Any]] = json.load(found)["data"]["result"]
        return rows if len(rows) == 2 else []

    try:
        rows = eventually(answer)
    finally:
        server.terminate()
        server.wait(20)
    assert {row["metric"]["stage"]: float(row["value"][1]) for row in rows} == {
        stage: counts["tokens"] for stage, counts in head.made.items()
    }
    assert {row["metric"]["study"] for row in rows} == {"watched"}


if __name__ == "__main__":
    monitored(int(sys.argv[1]))
