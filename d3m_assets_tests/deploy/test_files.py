"""The files of ``deploy/``, as far as they can be checked without Docker and without a cluster."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import dagster as dg
import pytest
import yaml

from d3m_assets.orchestration.resources import device_request
from d3m_assets.settings import load_settings, setting_names
from d3m_assets.store import ArtefactKey, Spec, Store
from d3m_assets_tests.postgres import PrivatePostgres, needs_postgres
from d3m_assets_tests.processes import wait_until
from d3m_assets_tests.requirements import need

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
GPU = "nvidia.com/gpu"


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def pinned():
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def variables():
    """Environment variables that have a meaning to our settings."""
    return {"D3M_" + name.upper().replace(".", "__") for name in setting_names()}


# Dockerfile


def dockerfile():
    """Instructions and their arguments, lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_copies_what_the_package_is_built_from_and_the_builder_is_sent_it():
    copied = [path for word, rest in dockerfile() if word == "COPY" for path in rest.split()[:-1]]
    ignore = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n") if not line.startswith("#")]
    assert ignore[0] == "**"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    assert set(copied) == sent
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert needed | {"pyproject.toml", "constraints.txt"} <= sent


def test_the_image_has_extras_that_there_are_and_runs_without_root():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([a-z0-9,-]+)", (DEPLOY / "Dockerfile").read_text())
    assert named
    assert {name for names in named for name in names.split(",")} <= set(extras)
    words = [word for word, _ in dockerfile()]
    assert words.index("USER") < words.index("CMD")
    assert dict(dockerfile())["USER"] != "root"


def test_every_extra_is_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {name.lower().replace("_", "-") for name in pinned()}
    for name in ("postgres", "s3", "k8s", "ray", "dagster-ray"):
        wanted = {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in extras[name]}
        assert wanted <= pins, name
    assert pinned()["dagster"] == dg.__version__


def test_the_command_of_the_image_serves_the_code_location(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    program, *arguments = json.loads(dict(dockerfile())["CMD"])
    beside = str(Path(sys.executable).with_name(program))
    (check,) = (s["healthcheck"]["test"][2:] for s in load("compose.yaml")["services"].values() if "api" in str(s))
    environment = os.environ | {
        "DAGSTER_HOME": "", "D3M_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "DAGSTER_DISABLE_TELEMETRY": "1"
    }  # fmt: skip
    command = [beside, *(port if word == "4000" else word for word in arguments)]
    assert command.count(port) == 1
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:

        def healthy():
            words = [beside, *(port if word == "4000" else word for word in check)]
            return subprocess.run(words, env=environment, capture_output=True).returncode == 0

        assert wait_until(healthy, 120), (tmp_path / "log").read_text()
    finally:
        server.terminate()
        server.wait(30)


# compose


def compose_program():
    """Compose, as a plugin of Docker's client or by itself; neither needs Docker to read files. None without."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return ["docker-compose"] if shutil.which("docker-compose") else None


PROGRAM = compose_program()
needs_compose = need("compose", PROGRAM, "neither docker compose nor docker-compose: apt-get install docker-compose")


def composed(*files):
    """What compose makes of the files."""
    chosen = [word for file in files for word in ("-f", str(DEPLOY / file))]
    done = subprocess.run(
        [*PROGRAM, *chosen, "--env-file", str(DEPLOY / ".env.example"), "config"],
        capture_output=True,
        text=True,
        cwd=DEPLOY,
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@needs_compose
def test_compose_itself_accepts_the_files():
    services = composed("compose.yaml", "compose.cuda.yaml")["services"]
    ours = {name for name, service in services.items() if "build" in service}
    assert ours == {"bucket", "code-location", "webserver", "daemon"}
    assert {services[name]["image"] for name in ours} == {"d3m-assets:cuda"}
    assert all(services[name]["build"]["args"] == {"TORCH_INDEX": ""} for name in ours)
    gpus = [name for name in services if "deploy" in services[name]]
    assert gpus == ["code-location"]
    assert {name for name, s in composed("compose.yaml")["services"].items() if "deploy" in s} == set()


def test_services_wait_for_services_that_there_are_and_that_say_when_they_are_ready():
    services = load("compose.yaml")["services"]
    assert set(services) == {"postgres", "minio", "bucket", "code-location", "webserver", "daemon"}
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in services, name
            assert wait["condition"] == "service_completed_successfully" or "healthcheck" in services[other], (
                name,
                other,
            )
    named = {v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if not v.startswith("$")}
    assert named == set(load("compose.yaml")["volumes"])
    assert set(load("compose.cuda.yaml")["services"]) <= set(services)


def test_compose_gives_the_instance_and_the_settings_what_they_read():
    services = load("compose.yaml")["services"]
    asked = set(re.findall(r"env: (\w+)", (DEPLOY / "dagster.yaml").read_text())) - {"DAGSTER_HOME"}
    for name in ("code-location", "webserver", "daemon"):
        given = set(services[name]["environment"])
        assert asked <= given, name
        assert {variable for variable in given if variable.startswith("D3M_")} <= variables()
    database = services["postgres"]["environment"]
    environment = services["daemon"]["environment"]
    assert environment["DAGSTER_PG_DB"] == database["POSTGRES_DB"]
    assert environment["DAGSTER_PG_USERNAME"] == database["POSTGRES_USER"]
    assert environment["DAGSTER_PG_HOST"] in services
    (server,) = load("workspace.yaml")["load_from"]
    assert server["grpc_server"]["host"] in services
    assert str(server["grpc_server"]["port"]) in json.loads(dict(dockerfile())["CMD"])


def test_the_example_names_every_variable_that_compose_asks_for_and_no_password_is_in_a_file():
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), flags=re.M))
    assert set(example) == asked | {"COMPOSE_PROJECT_NAME"}
    secrets = [v for s in load("compose.yaml")["services"].values() for k, v in s.get("environment", {}).items()
               if "PASSWORD" in k or "SECRET" in k]  # fmt: skip
    assert secrets
    assert all(re.fullmatch(r"\$\{\w+:\?.+\}", value) for value in secrets)


@pytest.fixture
def s3(monkeypatch):
    """An S3 server, and the environment that compose gives to its services, with that endpoint."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = load("compose.yaml")["services"]["code-location"]["environment"]
    for name, value in environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, "d3m" if value.startswith("$") else value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield environment["D3M_STORAGE"]
    server.stop()


def test_the_bucket_is_made_by_compose_and_found_by_the_store_through_the_environment_alone(s3):
    _, *arguments = load("compose.yaml")["services"]["bucket"]["command"]
    for _ in range(2):  # every `up` does it again
        subprocess.run([sys.executable, *arguments], check=True, env=os.environ)
    store, key = Store.open(f"{s3}/digits"), ArtefactKey("raw_dataset", "a")
    store.write(key, Spec({}, {"seed": 1}, "1"), {"a.txt": b"x"}, {})
    assert Store.open(f"{s3}/digits").read(key, "a.txt") == b"x"


# dagster.yaml


def test_the_variants_differ_in_what_runs_a_run_and_in_patience_only():
    local, k8s = load("dagster.yaml"), load("dagster-k8s.yaml")
    assert set(local) == set(k8s)
    assert {key for key in local if local[key] != k8s[key]} == {"run_launcher", "compute_logs", "run_monitoring"}
    laptop = yaml.safe_load((ROOT / "d3m_assets" / "orchestration" / "dagster.yaml").read_text())
    for key in ("concurrency", "run_monitoring", "run_retries", "retention", "telemetry", "nux"):
        assert local[key] == laptop[key], key


@needs_postgres
def test_kubernetes_launches_runs_from_the_variant_for_it(tmp_path, monkeypatch):
    from dagster_k8s import K8sRunLauncher

    config = load("dagster-k8s.yaml")
    assert config["run_launcher"]["config"].pop("load_incluster_config") is True
    cluster = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(cluster))
    config["run_launcher"]["config"] |= {
        "load_incluster_config": False,
        "kubeconfig_file": str(tmp_path / "kubeconfig"),
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    with PrivatePostgres() as server:
        for name, value in (
            server.environment | {"DAGSTER_K8S_NAMESPACE": "d3m", "DAGSTER_HOME": "/home/of/pod"}
        ).items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            launcher = instance.run_launcher
            assert isinstance(launcher, K8sRunLauncher)
            assert launcher.job_namespace == "d3m"
            assert launcher.run_k8s_config["pod_spec_config"]["tolerations"][0]["key"] == GPU


# Helm and KubeRay

IMAGE = {"repository", "tag", "pullPolicy"}
CHART = {
    "global": {"postgresqlSecretName"},
    "generatePostgresqlPasswordSecret": None,
    "postgresql": {
        "enabled", "postgresqlHost", "postgresqlUsername", "postgresqlDatabase", "postgresqlScheme", "service"
    },
    "dagsterWebserver": {"image", "podSecurityContext"},
    "dagster-user-deployments": {"enabled", "deployments"},
    "runLauncher": {"type", "config"},
    "concurrency": {"enabled", "pools"},
    "dagsterDaemon": {"image", "runCoordinator", "runMonitoring", "runRetries"},
    "telemetry": {"enabled"},
}  # fmt: skip
"""Keys of the chart's schema that our values use; ``helm/dagster/schema`` of dagster-io/dagster, read on 2026-11-25."""
DEPLOYMENT = {
    "name", "image", "dagsterApiGrpcArgs", "port", "includeConfigInLaunchedRuns", "env", "envSecrets", "resources"
}  # fmt: skip
LAUNCHER = {"imagePullPolicy", "runK8sConfig"}
RUN_CONFIG = {
    "containerConfig": "container_config", "podSpecConfig": "pod_spec_config", "jobSpecConfig": "job_spec_config"
}  # fmt: skip
"""Keys of ``runK8sConfig``, and what the chart's template calls them in ``dagster.yaml``."""


def values(*files):
    """What Helm makes of several files: mappings merged, the rest replaced, null removes."""

    def merged(below, above):
        out = dict(below)
        for key, value in above.items():
            if value is None:
                out.pop(key, None)
            else:
                both = isinstance(value, dict) and isinstance(out.get(key), dict)
                out[key] = merged(out[key], value) if both else value
        return out

    result = {}
    for file in files:
        result = merged(result, load(f"helm/{file}"))
    return result


@pytest.mark.parametrize("files", [("values.yaml",), ("values.yaml", "values-ray.yaml")])
def test_values_use_keys_that_the_chart_has(files):
    given = values(*files)
    assert set(given) <= set(CHART)
    for key, keys in CHART.items():
        assert keys is None or set(given[key]) <= keys, key
    (deployment,) = given["dagster-user-deployments"]["deployments"]
    assert set(deployment) <= DEPLOYMENT
    assert set(given["runLauncher"]["config"]["k8sRunLauncher"]) <= LAUNCHER
    assert set(given["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]) <= set(RUN_CONFIG)
    for image in (deployment["image"], given["dagsterWebserver"]["image"], given["dagsterDaemon"]["image"]):
        assert image == deployment["image"]
        assert set(image) == IMAGE
    assert (
        given["postgresql"]["postgresqlScheme"] == load("dagster.yaml")["storage"]["postgres"]["postgres_db"]["scheme"]
    )
    assert deployment["dagsterApiGrpcArgs"] == json.loads(dict(dockerfile())["CMD"])[-4:]


def test_the_chart_is_of_the_version_that_is_pinned():
    for file in (DEPLOY / "helm").iterdir():
        assert set(re.findall(r"--version (\S+)", file.read_text())) == {pinned()["dagster"]}


def test_a_step_that_uses_a_model_gets_a_gpu_on_the_nodes_that_are_selected():
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_user_defined_k8s_config

    given = values("values.yaml")["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    launcher = UserDefinedDagsterK8sConfig.from_dict({RUN_CONFIG[key]: value for key, value in given.items()})
    step = get_user_defined_k8s_config(device_request(load_settings(device="cuda")))
    both = K8sContainerContext(run_k8s_config=launcher).merge(K8sContainerContext(run_k8s_config=step)).run_k8s_config
    assert both.container_config["resources"]["limits"] == {GPU: "1"}
    assert both.container_config["resources"]["requests"] == given["containerConfig"]["resources"]["requests"]
    assert both.pod_spec_config["node_selector"] == given["podSpecConfig"]["nodeSelector"]
    assert both.pod_spec_config["tolerations"] == given["podSpecConfig"]["tolerations"]
    assert GPU not in str(launcher.container_config), "a step without a model would hold a GPU"


def settings_of(given):
    """The settings that the code location would have; a name that there is not is refused."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(given).items():
            patch.setenv(name, value)
        return load_settings()


def environment_of(given):
    (deployment,) = given["dagster-user-deployments"]["deployments"]
    return {entry["name"]: entry["value"] for entry in deployment["env"]}


def test_values_set_settings_that_there_are():
    settings = settings_of(values("values.yaml"))
    assert (settings.execution.executor, settings.device) == ("k8s", "cuda")


def test_with_ray_the_run_has_no_gpu_node_and_asks_the_cluster_by_its_name():
    given = values("values.yaml", "values-ray.yaml")
    pod = given["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["podSpecConfig"]
    assert pod == {}
    cluster = load("kuberay/raycluster.yaml")
    settings = settings_of(given)
    assert settings.compute.engine == "ray"
    assert settings.device == "cuda", "fingerprints hold the kind of device, and the run itself has none"
    assert settings.compute.address == f"ray://{cluster['metadata']['name']}-head-svc:10001"
    assert device_request(settings) == {}
    assert settings.storage == settings_of(values("values.yaml")).storage


def test_the_ray_cluster_has_a_gpu_a_worker_and_the_image_and_the_ray_of_the_code_location():
    cluster = load("kuberay/raycluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert spec["rayVersion"] == pinned()["ray"] == version("ray")
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports["client"] == 10001
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pod = group["template"]["spec"]
    (worker,) = pod["containers"]
    assert worker["resources"]["limits"][GPU] == worker["resources"]["requests"][GPU] == 1
    assert {mount["name"] for mount in worker["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    given = values("values.yaml")
    (deployment,) = given["dagster-user-deployments"]["deployments"]
    image = f"{deployment['image']['repository']}:{deployment['image']['tag']}"
    assert {worker["image"], head["template"]["spec"]["containers"][0]["image"]} == {image}
    selected = given["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["podSpecConfig"]
    assert (pod["nodeSelector"], pod["tolerations"]) == (selected["nodeSelector"], selected["tolerations"])
