"""What stands in cluster/: launcher files by Ray's own schema, KubeRay's by documented fields, and what all must keep.

Nothing here has been run in a cloud; see docs/cluster.md.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from rlheals_ray.config import load_study
from rlheals_ray.grid.command import _parser
from rlheals_ray.grid.model_size import FLOAT32, model_size
from rlheals_ray.grid.plan_memory import GIB, activation_bytes
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.mirror import PATIENCE_AT_INTERRUPT
from rlheals_ray.need import Offer
from rlheals_ray.provenance import COMMIT_VARIABLE

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ["aws.yaml", "gcp.yaml"]
RAY_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
DATA = Path(__file__).parent / "data"
KUBERAY_SCHEMA = json.loads((DATA / "kuberay.schema.json").read_text())
POLICY_SCHEMA = json.loads((DATA / "networkpolicy.schema.json").read_text())
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
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


def policy() -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in manifests() if one["kind"] == "NetworkPolicy")
    return found


def test_the_network_policy_admits_who_must_come_in_and_where() -> None:
    jsonschema.validate(policy(), POLICY_SCHEMA)
    pods, operator, monitoring = policy()["spec"]["ingress"]
    assert [set(each) for each in pods["from"]] == [{"podSelector"}] * 2 and "ports" not in pods
    named = "kubernetes.io/metadata.name"
    guide = (ROOT / "docs" / "cluster.md").read_text()
    for rule, ports in ((operator, [8265]), (monitoring, [8080, 44217, 44227])):
        assert [port["port"] for port in rule["ports"]] == ports
        (source,) = rule["from"]
        assert f"`{source['namespaceSelector']['matchLabels'][named]}`" in guide, (
            "its namespace is documented"
        )


def test_the_policy_s_schema_tells_wrong_ones() -> None:
    for wrong in (
        {"from": []},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
        {"form": [{"podSelector": {}}]},
    ):
        changed = {**policy(), "spec": {**policy()["spec"], "ingress": [wrong]}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, POLICY_SCHEMA)


def test_all_of_kubernetes_is_in_one_namespace_whose_labels_agree() -> None:
    assert {one["metadata"]["namespace"] for one in manifests()} == {"rlheals"}
    cluster = next(one for one in manifests() if one["kind"] == "RayCluster")["metadata"]["name"]
    job = next(one for one in manifests() if one["kind"] == "RayJob")["spec"]
    selected = {"ray.io/cluster": cluster}
    assert job["clusterSelector"] == policy()["spec"]["podSelector"]["matchLabels"] == selected
    admitted = [each["podSelector"]["matchLabels"] for each in policy()["spec"]["ingress"][0]["from"]]
    assert admitted == [selected, job["submitterPodTemplate"]["metadata"]["labels"]]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed; .ci/prometheus fetches it")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    def check(file: Path) -> int:
        return subprocess.run([str(PROMTOOL), "check", "config", str(file)], capture_output=True).returncode

    assert check(CLUSTER / "prometheus.yml") == 0
    wrong = tmp_path / "prometheus.yml"
    wrong.write_text((CLUSTER / "prometheus.yml").read_text().replace("scrape_interval", "scrape_intervall"))
    assert check(wrong) != 0


def test_prometheus_reads_the_file_that_ray_s_head_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())
    files = [
        Path(file)
        for job in config["scrape_configs"]
        for one in job["file_sd_configs"]
        for file in one["files"]
    ]
    assert [file.name for file in files] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]


def test_what_a_job_does_not_need_stays_at_home_and_what_it_needs_goes_along() -> None:
    """Ray reads .rayignore as it reads .gitignore; of that, the few forms that stand here."""
    lines = [
        line for line in (ROOT / ".rayignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[.\w-]+/", line) for line in lines), (
        "whole directories of this one, and nothing cleverer"
    )
    left = {line.rstrip("/") for line in lines}
    assert {".git", ".venv", "tests", "runs"} <= left
    assert not left & {"jobs", "rlheals_ray", "pyproject.toml", "cluster"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout: which directories are the project's is not known")
    top = {file.split("/")[0] for file in listed.stdout.splitlines() if "/" in file}
    assert top - left == {"cluster", "jobs", "rlheals_ray"}, "a directory that is new: should it travel?"


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
    assert policy()["spec"]["policyTypes"] == ["Ingress"] and "ipBlock" not in json.dumps(policy())
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


BRINGS = {
    "boto3": {"boto3", "botocore"},
    "google-api-python-client": {"google", "google_auth_httplib2", "googleapiclient", "httplib2"},
}
"""What can be imported where a package of the extra `launcher` is installed, with what it depends on."""


def test_the_launcher_s_extra_is_what_ray_s_providers_import_and_stands_in_both_images() -> None:
    clouds = Path(ray.autoscaler.__file__).parent / "_private"
    imported: set[str] = set()
    for path in [path for cloud in ("aws", "gcp") for path in (clouds / cloud).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {one.name.split(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    ours = imported - sys.stdlib_module_names - {"ray", "packaging"}  # Ray depends on packaging
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert ours == set().union(*(BRINGS[name] for name in extras["launcher"]))
    for kind in ("gpu", "cpu"):
        installed = re.search(r"pip install .*-e '\.\[(.*?)\]'", (CLUSTER / f"Dockerfile.{kind}").read_text())
        assert installed and "launcher" in installed[1].split(","), kind
    assert "pip install -e '.[launcher]'" in (ROOT / "docs" / "cluster.md").read_text()


def test_a_job_that_is_stopped_has_time_to_bring_its_copy_up_to_date() -> None:
    """Ray's default, 3 s, would kill it in the middle."""
    name = "RAY_JOB_STOP_WAIT_TIME_S"
    (head,) = ray_cluster()["headGroupSpec"]["template"]["spec"]["containers"]
    told = [next(each["value"] for each in head["env"] if each["name"] == name)]
    options = [option for each in LAUNCHERS for option in launcher(each)["docker"]["run_options"]]
    told += [option.partition("=")[2] for option in options if option.startswith(f"--env {name}=")]
    texts = [(CLUSTER / file).read_text() for file in ("local", "Dockerfile.gpu", "Dockerfile.cpu")]
    told += [found for text in texts for found in re.findall(rf'{name}(?:=|": ")(\d+)', text)]
    assert len(told) == 6 and min(map(int, told)) > 2 * PATIENCE_AT_INTERRUPT


def test_images_know_of_which_commit_they_are() -> None:
    for kind in ("gpu", "cpu"):
        text = (CLUSTER / f"Dockerfile.{kind}").read_text()
        assert f"ARG {COMMIT_VARIABLE}" in text and f'"${COMMIT_VARIABLE}" > rlheals_ray/COMMIT' in text
        assert f"--build-arg {COMMIT_VARIABLE}=" in text
    assert COMMIT_VARIABLE in (ROOT / "docs" / "cluster.md").read_text()


# --- whether the preset fits


@dataclass(frozen=True)
class Machine:
    """What a cloud sells under a name: CPUs, GiB of memory, GPUs, GiB of each."""

    cpus: int
    memory: float
    gpus: int
    gpu_memory: float


# From the providers' lists of machine types. "80 GB" of an A100 are 80 GiB, of which some belong to the driver.
MACHINES = {
    "p4de.24xlarge": Machine(96, 1152, 8, 79.2),
    "g6e.2xlarge": Machine(8, 64, 1, 44.7),
    "a2-ultragpu-4g": Machine(48, 680, 4, 79.2),
    "a2-highgpu-1g": Machine(12, 85, 1, 39.4),
}
GKE = {"nvidia-a100-80gb": "a2-ultragpu-4g", "nvidia-tesla-a100": "a2-highgpu-1g"}
CONTEXT_GIB = 2.0
"""Of a GPU, for CUDA itself and for what an allocator cannot use: assumed."""


@dataclass(frozen=True)
class NodeType:
    machine: Machine
    cpus: int
    gpus: int
    most: int
    labels: dict[str, str]
    memory: float
    """GiB that processes may take."""


def node_types(name: str) -> dict[str, NodeType]:
    found = {}
    if name == "kuberay":
        for group in ray_cluster()["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            limits = pod["containers"][0]["resources"]["limits"]
            assert limits == pod["containers"][0]["resources"]["requests"]
            machine = MACHINES[GKE[pod["nodeSelector"]["cloud.google.com/gke-accelerator"]]]
            memory = float(limits["memory"].removesuffix("Gi"))
            gpus = int(limits["nvidia.com/gpu"])
            found[group["groupName"]] = NodeType(
                machine, int(limits["cpu"]), gpus, group["maxReplicas"], group["labels"], memory
            )
        return found
    config = launcher(name)
    workers = {k: v for k, v in config["available_node_types"].items() if k != config["head_node_type"]}
    assert sum(each["max_workers"] for each in workers.values()) <= config["max_workers"]
    for role, each in workers.items():
        machine = MACHINES[each["node_config"].get("InstanceType") or each["node_config"]["machineType"]]
        asked = each["resources"]
        found[role] = NodeType(
            machine, asked["CPU"], asked["GPU"], each["max_workers"], each["labels"], machine.memory - 16
        )
    return found


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the plan reads of Qwen2.5-7B: its configuration."""
    directory = tmp_path_factory.mktemp("seven")
    shutil.copy(DATA / "qwen2.5-7b.config.json", directory / "config.json")
    return directory


@pytest.mark.parametrize("generators", [4, 32], ids=["8 GPUs", "64 GPUs"])
@pytest.mark.parametrize("name", [*LAUNCHERS, "kuberay"])
def test_the_preset_fits_the_nodes_and_their_number(name: str, generators: int, seven: Path) -> None:
    """Both ways of docs/cluster.md: engines on nodes of their own, and engines beside their learners."""
    labels = [one for one in shlex.split(job_entrypoint()) if one.startswith("resources.")]
    study = load_study("qwen2.5-7b", [f"base.model={seven}", f"rollout.generators={generators}", *labels])
    needed, types = resources_of(study), node_types(name)
    for kind, need in needed.needs(0).items():
        node = types["learner" if kind == "tasks" else kind]
        assert need.fits(Offer(node.cpus, node.gpus, node.memory * GIB, node.labels)), kind
    learner, generator = types["learner"], types["generator"]
    for node in types.values():
        assert (
            node.cpus <= node.machine.cpus
            and node.gpus <= node.machine.gpus
            and node.memory <= node.machine.memory
        )
    # As many as there are: whole groups on a node, so that they need not talk across it.
    groups_of_a_node = learner.gpus // needed.workers
    assert groups_of_a_node >= 1 and groups_of_a_node * learner.most >= needed.groups
    assert generator.gpus * generator.most >= needed.generators
    assert learner.gpus * learner.most >= needed.generators + needed.groups * needed.workers, (
        "all on one kind of node"
    )
    # Each in its GPU.
    micro = study.rl.micro_batch or 1
    size = model_size(study)
    a_pass = activation_bytes(
        size, micro * study.rollout.max_model_len, study.rl.precision, study.rl.gradient_checkpointing
    )
    assert needed.worker_gib + a_pass / GIB + CONTEXT_GIB < learner.machine.gpu_memory
    for node in types.values():
        assert needed.generator_gib + CONTEXT_GIB < node.machine.gpu_memory
    # And in the node: every worker reads the whole model before it is divided; a group's state is gathered once.
    reading = needed.workers * FLOAT32 * size.parameters / GIB
    assert groups_of_a_node * (reading + needed.shared_gib) < learner.memory
    assert 2 * 2 * size.parameters / GIB < generator.memory, "weights that are read, and others on their way"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_what_belongs_to_an_account_is_in_capitals_and_gpus_have_a_driver(name: str) -> None:
    for role, each in launcher(name)["available_node_types"].items():
        node = each["node_config"]
        if name == "aws.yaml":
            assert node["ImageId"] == "AMI_ID", role  # Ray's own default is as old as its release
        else:
            image = node["disks"][0]["initializeParams"]["sourceImage"]
            assert image.endswith("/IMAGE_FAMILY"), role
            assert {"key": "install-nvidia-driver", "value": "True"} in node["metadata"]["items"], role
    text = (CLUSTER / name).read_text()
    placeholders = {"AMI_ID", "EFS_ID"} if name == "aws.yaml" else {"IMAGE_FAMILY", "FILESTORE_IP", "PROJECT"}
    assert all(re.search(rf"\b{each}\b", text) for each in {*placeholders, "REGISTRY"})


def job_entrypoint() -> str:
    found: str = next(one["spec"]["entrypoint"] for one in manifests() if one["kind"] == "RayJob")
    return found


def commands() -> list[str]:
    """Every command line of a study in cluster/ and docs/cluster.md."""
    texts = [(ROOT / "docs" / "cluster.md").read_text()]
    texts += [job_entrypoint()]
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
