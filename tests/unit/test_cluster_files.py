"""What stands in cluster/: launcher files by Ray's own schema, KubeRay's by documented fields, and what all must keep.

Nothing here has been run in a cloud; see docs/cluster.md.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from rlheals_ray.config import load_study
from rlheals_ray.grid.command import _parser

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ["aws.yaml", "gcp.yaml"]
RAY_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
KUBERAY_SCHEMA = json.loads((Path(__file__).parent / "data" / "kuberay.schema.json").read_text())
EVERY = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".json")


def launcher(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return loaded


def manifests() -> list[dict[str, Any]]:
    paths = sorted((CLUSTER / "kuberay").glob("*.yaml"))
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


def ray_cluster() -> dict[str, Any]:
    spec: dict[str, Any] = next(one["spec"] for one in manifests() if one["kind"] == "RayCluster")
    return spec


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_are_what_ray_s_schema_asks_for(name: str) -> None:
    jsonschema.validate(launcher(name), RAY_SCHEMA)


def test_the_schema_tells_wrong_files() -> None:
    for wrong in ({"max_worker": 3}, {"available_node_types": {"head": {"resources": {"CPU": "two"}}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**launcher("aws.yaml"), **wrong}, RAY_SCHEMA)


@pytest.mark.parametrize("manifest", [m for m in manifests() if m["apiVersion"] == "ray.io/v1"])
def test_kuberay_manifests_have_documented_fields_alone(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, KUBERAY_SCHEMA)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_head_works_not_and_the_others_come_and_go(name: str) -> None:
    config = launcher(name)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {role: each for role, each in types.items() if role != config["head_node_type"]}
    assert set(workers) == {"learner", "generator"}
    for role, each in workers.items():
        assert each["min_workers"] == 0 < each["max_workers"]
        assert each["resources"]["GPU"] > 0 and each["labels"] == {"role": role}
    assert 0 < config["idle_timeout_minutes"] <= 30
    on_spot = {role: "spot" in json.dumps(each["node_config"]).lower() for role, each in workers.items()}
    assert on_spot == {"learner": False, "generator": True}
    assert any("/mnt/studies" in command for command in config["initialization_commands"])


def test_kubernetes_has_the_same_shape() -> None:
    spec = ray_cluster()
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"learner", "generator"}
    for role, group in groups.items():
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        assert group["labels"] == {"role": role}
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 0
    assert "spot" in json.dumps(groups["generator"]) and "spot" not in json.dumps(groups["learner"])


def test_every_cluster_asks_for_a_token_and_no_file_holds_one() -> None:
    for name in LAUNCHERS:
        assert "--env RAY_AUTH_MODE=token" in launcher(name)["docker"]["run_options"]
    assert ray_cluster()["authOptions"] == {"mode": "token", "secretName": "rlheals-token"}
    assert '"RAY_AUTH_MODE": "token"' in (CLUSTER / "local").read_text()
    for path in EVERY:
        text = path.read_text()
        assert not re.search(r"RAY_AUTH_TOKEN[=:]\s*\S", text.replace("RAY_AUTH_TOKEN_PATH", "")), path
        assert not re.search(r"\b[0-9a-f]{32,}\b|AKIA[0-9A-Z]{16}|-----BEGIN", text), path


def test_dashboards_are_on_loopback_but_for_the_pods_of_kubernetes() -> None:
    for name in LAUNCHERS:
        (start,) = [line for line in launcher(name)["head_start_ray_commands"] if "--head" in line]
        assert "--dashboard-host=127.0.0.1" in start
    assert "--dashboard-host=127.0.0.1" in (CLUSTER / "local").read_text()
    policy = next(one for one in manifests() if one["kind"] == "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"] and "ipBlock" not in json.dumps(policy)
    others = [path for path in EVERY if path.name != "raycluster.yaml"]
    assert not [path for path in others if "0.0.0.0" in path.read_text()]


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(pin.split("==") for pin in project["dependencies"] if "==" in pin)
    assert ray_cluster()["rayVersion"] == next(v for name, v in pins.items() if name.startswith("ray["))
    gpu, cpu = ((CLUSTER / f"Dockerfile.{kind}").read_text() for kind in ("gpu", "cpu"))
    extras = re.search(r"-e '\.\[(.*?)\]'", gpu)
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert "make setup" in cpu
    for text in (gpu, cpu):
        assert "USER ray" in text and "3.11" in text


def commands() -> list[str]:
    """Every command line of a study in cluster/ and docs/cluster.md."""
    texts = [(ROOT / "docs" / "cluster.md").read_text()]
    texts += [one["spec"]["entrypoint"] for one in manifests() if one["kind"] == "RayJob"]
    found = [
        match
        for text in texts
        for match in re.findall(
            r"python (?:/home/ray/rlheals_ray/)?jobs/grid\.py [^\n`]+", text.replace("\\\n", " ")
        )
    ]
    assert len(found) >= 3
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_is_accepted_and_names_a_study_that_exists(line: str) -> None:
    given = shlex.split(line, comments=True)[2:]
    parsed = _parser("grid", "").parse_intermixed_args(given)
    load_study(parsed.study, parsed.overrides)
