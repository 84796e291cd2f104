"""What production is set up with: the image, the worker's service, the compose file, the proxy.

Nothing is started here; each is checked by the strictest tool that needs no Docker engine and no running systemd.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from deployments import cli
from deployments.server import pools
from tests.browser import require_program

ROOT = Path(__file__).parent.parent
DEPLOYMENTS = ROOT / "deployments"
DOCKERFILE = DEPLOYMENTS / "Dockerfile"
SERVICE = DEPLOYMENTS / "ratchet-worker@.service"


# --- the image -------------------------------------------------------------------------------------------


def _copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """The linter of Dockerfiles, with every rule on."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_builder_is_sent_what_the_dockerfile_copies_and_nothing_else() -> None:
    """State of a local stack holds keys: the ignore file names what is sent, not what is kept back."""
    first, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(_copied())
    assert [line for line in lines if not line.startswith("!")] == ["**/__pycache__"]


def test_the_image_runs_as_the_user_that_the_templates_name() -> None:
    """Not as root, and by number: Kubernetes cannot check a name."""
    text = DOCKERFILE.read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == [f"{pools.USER}:{pools.USER}"]
    assert f"--uid {pools.USER} --gid {pools.USER} --home-dir {pools._HOME}" in text
    assert f"-t {pools.IMAGE} " in text


def test_the_image_is_built_from_versions() -> None:
    """Base and libraries: the same Dockerfile gives the same image next month."""
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:${PYTHON}"}
    installs = re.findall(r"pip install (.+?)(?: &&.*)?$", text, re.MULTILINE)
    assert installs == [
        "--no-deps --require-hashes -r requirements-image.lock",
        '${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r requirements-torch.lock',
        "--no-deps --no-build-isolation .",
    ]


def test_what_is_copied_is_enough_to_build_the_package(tmp_path: Path) -> None:
    """The wheel of the image, made from those files alone, holds the modules and the files beside them."""
    source = tmp_path / "source"
    source.mkdir()
    for name in _copied():
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", tmp_path, source],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"flows/retrain.py", "deployments/prefect.yaml", "deployments/pools/gpu-kubernetes.json"} <= inside


# --- the worker's service --------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """An instance of the unit whose programs exist, as systemd looks for them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("prefect", "ratchet"):
        (programs / name).symlink_to("/bin/true")
    unit = tmp_path / "ratchet-worker@gpu.service"
    unit.write_text(SERVICE.read_text().replace("/opt/ratchet/.venv/bin", str(programs)))
    return unit


def test_systemd_takes_the_service(service: Path) -> None:
    """Every directive is known and has a sound value."""
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", service], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_wrong_directive_in_the_service_would_be_noticed(service: Path) -> None:
    """The verification above can fail."""
    service.write_text(service.read_text().replace("KillMode=mixed", "KillMode=gently"))
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", service], capture_output=True, text=True, check=False
    )
    assert "kill mode" in done.stderr


def test_the_service_is_closed_in_by_systemd(service: Path) -> None:
    """Exposure at most 2.5 on systemd's scale from 0 to 10; a service that asks for nothing has 9.6."""
    done = subprocess.run(
        [require_program("systemd-analyze"), "security", "--no-pager", "--offline=true", "--threshold=25", service],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_waits_longer_than_its_drain() -> None:
    """Otherwise systemd would kill the runs that the drain waits for."""
    text = SERVICE.read_text()
    (drain,) = re.findall(r"^ExecStop=.* drain %i .*--minutes (\d+)$", text, re.MULTILINE)
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)min$", text, re.MULTILINE)
    assert int(stop) > int(drain)
    marks = re.findall(r"--mark (\S+)", text)
    assert len(marks) == 2
    assert len(set(marks)) == 1


# --- the compose file, the proxy, the page about them ----------------------------------------------------

COMPOSE = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PAGE = (DEPLOYMENTS / "README.md").read_text()


def test_the_compose_file_has_every_part_and_names_only_what_it_defines() -> None:
    """Networks, volumes, secrets and services that are referred to exist."""
    assert set(SERVICES) == {
        "proxy",
        "server",
        "postgres",
        "seaweedfs",
        "s3",
        "worker-cpu",
        "worker-gpu",
        "metrics",
        "deploy",
    }
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[needed]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOYMENTS / source).exists(), (name, volume)


def test_only_the_proxy_is_reached_from_outside_and_only_the_server_reaches_the_database() -> None:
    """The S3 server's other ports and PostgreSQL are nobody else's."""
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert {name for name, service in SERVICES.items() if "database" in service["networks"]} == {"server", "postgres"}
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_nothing_but_the_gateway_reaches_the_ports_of_seaweedfs_that_ask_for_no_key() -> None:
    """The network that it is in has the gateway as its only other member, and the gateway passes one port on.

    `test_local.py` shows on a real server what the other ports would give away.
    """
    assert SERVICES["seaweedfs"]["networks"] == ["storage"]
    assert COMPOSE["networks"]["storage"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "storage" in service["networks"]} == {"seaweedfs", "s3"}
    assert not {"network_mode", "ports", "links", "extra_hosts"} & set(SERVICES["seaweedfs"])
    text = re.sub(r"#.*", "", (DEPLOYMENTS / "s3.conf").read_text())
    assert text.count("{") == text.count("}")
    for line in (found.strip() for found in text.splitlines() if found.strip()):
        assert line.endswith((";", "{", "}")), line
    assert re.findall(r"proxy_pass (\S+);", text) == ["http://seaweedfs:8333"]
    assert re.findall(r"listen (\S+);", text) == ["8333"]
    assert "proxy_set_header Host $http_host;" in text  # signatures cover it
    assert "-s3.port=8333" in SERVICES["seaweedfs"]["command"]
    assert SERVICES["worker-gpu"]["environment"]["AWS_ENDPOINT_URL"] == "http://s3:8333"


def test_what_is_large_is_written_to_disk() -> None:
    """A /tmp in memory is small, and temporary files go to the volume that the work folder is on."""
    home = "/var/lib/ratchet"
    assert f"TMPDIR={home}\n" in DOCKERFILE.read_text()
    for name, service in SERVICES.items():
        assert service.get("tmpfs", ["/tmp:size=64m"]) == ["/tmp:size=64m"], name  # noqa: S108
        if service["image"] == pools.IMAGE:
            assert any(volume.endswith(f":{home}") for volume in service["volumes"]), name
    (environment,) = re.findall(r"^Environment=(.+)$", SERVICE.read_text(), re.MULTILINE)
    settings = dict(one.split("=", 1) for one in environment.split())
    assert settings["TMPDIR"] == settings["HOME"]
    assert settings["RATCHET_WORK"].startswith(settings["TMPDIR"])


def test_no_service_has_more_rights_than_it_needs_and_every_image_a_version() -> None:
    """No privileges, no latest, and ours as the image's own user."""
    for name, service in SERVICES.items():
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        _, _, tag = service["image"].rpartition(":")
        assert re.match(r"\d+\.\d+", tag), name
        if service["image"] == pools.IMAGE:
            assert service["user"] == f"{pools.USER}:{pools.USER}"
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]


def test_no_secret_is_written_into_the_compose_file() -> None:
    """Passwords and keys come from files that are not in the repository."""
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            secret = re.search("PASSWORD|SECRET|AUTH|KEY|CONNECTION_URL", variable)
            assert not secret or variable.endswith("_FILE"), (name, variable)
    files = [secret["file"] for secret in COMPOSE["secrets"].values()]
    files += [file for service in SERVICES.values() for file in service.get("env_file", [])]
    assert all(file.startswith("secrets/") for file in files)
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for file in files:
        assert Path(file).name in PAGE, f"the page does not say what is in {file}"


def test_the_gpu_worker_asks_for_a_gpu_and_the_cpu_worker_does_not() -> None:
    """By device reservation; and shared memory beyond a container's own 64 MB."""
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert SERVICES["worker-gpu"]["shm_size"] == "2gb"
    assert "deploy" not in SERVICES["worker-cpu"]


def test_the_proxy_passes_on_to_the_server_of_the_compose_file() -> None:
    """Over TLS from 1.2 on, websockets too, with the certificate that the compose file mounts."""
    text = re.sub(r"#.*", "", (DEPLOYMENTS / "nginx.conf").read_text())
    assert text.count("{") == text.count("}")
    for line in (found.strip() for found in text.splitlines() if found.strip()):
        assert line.endswith((";", "{", "}")), line
    command = SERVICES["server"]["command"]
    assert f"server server:{command[command.index('--port') + 1]};" in text
    assert "listen 8443 ssl;" in text
    assert SERVICES["proxy"]["ports"] == ["443:8443"]
    assert re.findall(r"ssl_protocols\s+(.+);", text) == ["TLSv1.2 TLSv1.3"]
    assert set(re.findall(r"/run/secrets/(\w+);", text)) == set(SERVICES["proxy"]["secrets"])
    assert "proxy_set_header Upgrade $http_upgrade;" in text


def test_single_sign_on_lets_people_look_and_start_nights_and_no_more() -> None:
    """Which rule of the example takes a request, as nginx chooses it; each asks who it is first."""
    text = re.sub(r"#.*", "", (DEPLOYMENTS / "sso.conf").read_text())
    assert text.count("{") - text.count("{8}") == text.count("}") - text.count("{8}")
    blocks = re.findall(r"^location (=|~)? ?(\S+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    bodies = {pattern: body for _, pattern, body in blocks}
    regular = [pattern for kind, pattern, _ in blocks if kind == "~"]
    for pattern in [*regular, "/"]:
        assert "auth_request " in bodies[pattern], pattern

    def rule(path: str) -> str:
        return next((pattern for pattern in regular if re.search(pattern, path)), "/")

    run = "0a1b2c3d-0000-4000-8000-000000000000"
    everybody = [
        "/api/flow_runs/filter", "/api/deployments/paginate", "/api/artifacts/latest/filter", "/api/events/filter",
        f"/api/deployments/{run}/create_flow_run", "/api/ui/flow_runs/history",
    ]  # fmt: skip
    operators = [
        "/api/deployments/", f"/api/deployments/{run}", "/api/work_pools/gpu", "/api/block_documents/",
        "/api/automations/", f"/api/automations/{run}",
    ]  # fmt: skip
    for path in everybody:
        assert rule(path) != "/", path
        assert "/oauth2/auth;" in bodies[rule(path)], path
    for path in operators:
        assert "auth_request /operators/auth;" in bodies[rule(path)], path
    for path in ("/api/flow_runs/", "/api/flows/", "/dashboard"):
        assert rule(path) == "/", path
    assert re.search(r"limit_except GET \{\s*deny all;", bodies["/"])


def test_settings_of_prefect_that_are_named_exist() -> None:
    """In page, compose file, service, image and templates: a misspelt one would silently do nothing."""
    known = _get_valid_setting_names(Settings) | {
        "PREFECT_SERVER_ENCRYPTION_KEY",  # read by the server where it encrypts blocks
        "PREFECT_PROFILES_PATH",
        "PREFECT_HOME",
    }
    texts = [PAGE, *(path.read_text() for path in (DEPLOYMENTS / "compose.yaml", SERVICE, DOCKERFILE))]
    texts += [pools.path(pool, kind).read_text() for pool in pools.POOLS for kind in pools.KINDS]
    named = {name for text in texts for name in re.findall(r"\bPREFECT_[A-Z_]+[A-Z]\b(?=[=:`\"])", text)}
    assert len(named) > 8
    # the templates' descriptions are Prefect's own, and name a setting of its Kubernetes worker
    assert named - known == set()


def test_commands_of_ratchet_that_are_named_exist() -> None:
    """As the command line knows them."""
    commands = {command.name for command in cli.app.registered_commands}
    started = re.compile(r"(?:^(?:[A-Z_]+=\S+ )?|`|/bin/)ratchet (\w+)", re.MULTILINE)
    used = {found for text in (PAGE, SERVICE.read_text()) for found in started.findall(text)}
    assert {"deploy", "drain", "resume", "doctor", "history", "rollback"} <= used
    assert used - commands == set()
