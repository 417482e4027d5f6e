"""Kubernetes: the manifest that is printed and applied."""

import pathlib
import re

import pytest

from tests.launch.launching import CONFIG, ODD, ON_GPU, ON_TPU, calls, fakes, launch, printed


def manifest(*arguments: str, cwd: pathlib.Path) -> tuple[str, dict]:
    """The command and the manifest of a dry run."""
    yaml = pytest.importorskip("yaml")
    text = printed(*arguments, cwd=cwd)
    command, rest = text.split(" <<'END_OF_MANIFEST'\n")
    body, rest = rest.split("END_OF_MANIFEST\n")
    assert rest == ""
    return command, yaml.safe_load(body)


def pod_of(found: dict) -> tuple[dict, dict]:
    (group,) = found["spec"]["replicatedJobs"]
    assert group["replicas"] == 1
    job = group["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    return job, job["template"]["spec"]


def test_the_manifest_of_a_tpu_slice(tmp_path):
    arguments = [*ON_TPU, "--spot", "--namespace=team", CONFIG, "--workdir=/shared/x", *ODD]
    command, found = manifest(*arguments, cwd=tmp_path)
    assert command == "kubectl --namespace=team apply -f -"
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job, pod = pod_of(found)
    assert job["parallelism"] == 4  # 16 chips, 4 of each node
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    words = ["python", "-m", "rgbd_reid_jax.main", CONFIG, "--workdir=/shared/x", *ODD, "--distributed=tpu"]
    assert [word.replace("$$(", "$(") for word in container["command"]] == words
    assert not [word for word in container["command"] if re.search(r"(?<!\$)\$\(", word)]  # Kubernetes expands nothing


def test_the_manifest_of_gpu_nodes(tmp_path):
    command, found = manifest(*ON_GPU, "--gpus=4", CONFIG, "--workdir=/shared/x", cwd=tmp_path)
    assert command == "kubectl apply -f -"
    job, pod = pod_of(found)
    assert job["parallelism"] == 2
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    assert container["command"][-1] == "--distributed=env"
    variables = {one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"]}
    # The name that JobSet gives the first pod of the first job of the group `workers`.
    assert variables["RGBD_REID_COORDINATOR"] == "reid-workers-0-0.reid:12355"
    assert found["spec"]["replicatedJobs"][0]["name"] == "workers"
    assert variables["RGBD_REID_PROCESSES"] == "2"
    assert variables["RGBD_REID_PROCESS"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]  # refused input: starting again would not help


def test_kubectl_gets_what_the_dry_run_prints(tmp_path):
    path = fakes(tmp_path, kubectl="cat >manifest")
    arguments = [*ON_GPU, CONFIG, "--workdir=/shared/x", *ODD]
    text = printed(*arguments, cwd=tmp_path, **path)
    assert launch(*arguments, cwd=tmp_path, **path).returncode == 0
    assert calls(tmp_path) == [["kubectl", "apply", "-f", "-"]]
    assert (tmp_path / "manifest").read_text() == text.split("\n", 1)[1].removesuffix("END_OF_MANIFEST\n")
