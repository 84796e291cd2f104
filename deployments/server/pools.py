"""Base job templates of the work pools: what a worker starts for one run, as a process, a container or a job.

The templates lie as JSON in `deployments/pools/`, one for each pool and kind of worker, so that they can be read, given
to `prefect work-pool create --base-job-template`, and used without the libraries of the workers. They are made by
`python -m deployments.server.pools` from the default templates of the installed Prefect plus what is written here; a
test says when an upgrade of Prefect asks for doing that again.

No template holds a secret: a process inherits its worker's environment, a container reads files that are mounted from
its host, a Kubernetes job refers to a Secret by name. Nor can a run or a deployment choose what is executed, by whom,
or what it gets at: command, environment, image, mounts, service account and the like are fixed here, and the server
refuses job variables that a template does not name (for a deployment: when it is created, Prefect 3.8.8 does not look
again when it is changed).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from deployments.places import POOLS

Kind = Literal["process", "docker", "kubernetes"]
Template = dict[str, Any]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FOLDER: Final = Path(__file__).parents[1] / "pools"

IMAGE: Final = "ratchet:0.1.0"
"""What `docker build -t` is told in deployments/README.md; a registry's name goes before it."""

USER: Final = 10001
"""User and group of the image: neither root nor a user of the host."""

_NAMESPACE: Final = "ratchet"
_SERVICE_ACCOUNT: Final = "ratchet-trainer"
SECRET: Final = "ratchet"  # noqa: S105 # the name of a Kubernetes Secret, whose keys become environment variables

_HEARTBEAT_SECONDS: Final = 60
"""How often a run says that it lives; the automation that crashes silent runs waits for nine of them."""

_HOME: Final = "/var/lib/ratchet"
_SECRETS: Final = "/run/secrets/ratchet"

_SIZES: Final[Mapping[str, Mapping[str, str]]] = {
    # the CPU pool's flow holds rows of a night, not a model; the GPU pool's a model, its optimiser, and batches ahead
    "cpu": {"cpu": "1", "memory": "4Gi", "work": "10Gi"},
    "gpu": {"cpu": "4", "memory": "16Gi", "work": "50Gi"},
}
_SHARED_MEMORY: Final = "2Gi"  # several processes exchange tensors there; a container's own 64 MB would kill them

# Prefect passes SIGTERM on to the run, gives it thirty seconds, and tells the server what became of it, all of which
# needs the pod; the rest is for a server that is slow or being restarted itself
_GRACE_SECONDS: Final[Mapping[str, int]] = {"cpu": 120, "gpu": 300}


def template(pool: str, kind: Kind) -> Template:
    """The base job template of a work pool, as `WorkPoolCreate.base_job_template` takes it.

    Args:
        pool: `cpu` or `gpu`.
        kind: Which worker serves the pool; also the pool's type.

    Raises:
        ValueError: There is no such pool or kind.
    """
    if pool not in POOLS or kind not in KINDS:
        raise ValueError(
            f"no template for pool {pool!r} of kind {kind!r}; pools: {', '.join(POOLS)}; kinds: {', '.join(KINDS)}"
        )
    found: Template = json.loads(path(pool, kind).read_text())
    return found


def path(pool: str, kind: Kind) -> Path:
    """The file that holds a template."""
    return FOLDER / f"{pool}-{kind}.json"


def build(pool: str, kind: Kind) -> Template:
    """A fresh template: the installed Prefect's default for this kind, and what Ratchet adds.

    Raises:
        LookupError: Prefect knows no such worker; for containers and Kubernetes their packages must be installed.
    """
    from prefect.utilities.asyncutils import run_coro_as_sync
    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

    base = run_coro_as_sync(get_default_base_job_template_for_infrastructure_type(kind))
    if base is None:
        raise LookupError(f"Prefect has no {kind} worker: install prefect-{kind}")
    _default(base, "stream_output", False)  # a run must not die of a broken pipe when its worker is killed
    base["variables"]["additionalProperties"] = False
    _fix(base, "command", "working_dir", "networks", "network_mode", "registry_credentials", "cluster_config")
    _fix(base, env={
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(_HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",  # what the steps log is shown in the UI as well
        # the default of 5 tries for a minute; 7 last four, and a Prefect server that restarts costs no night
        "PREFECT_CLIENT_MAX_RETRIES": "7",
    })  # fmt: skip
    if kind != "process":
        _contain(base)
        if pool == "gpu":  # a container that was given none fails at once, rather than train on the CPU all night
            base["job_configuration"]["env"]["RATCHET_REQUIRE_GPU"] = "1"
    if kind == "docker":
        _docker(base, pool)
    elif kind == "kubernetes":
        _kubernetes(base, pool)
    return base


def _contain(base: Template) -> None:
    """What containers and jobs have in common: the image, the store, and no secret taken over from the worker."""
    _fix(base, image=IMAGE)
    _variable(base, "store", "string", "Store", "Where the data is: s3://bucket/prefix.")
    _variable(base, "s3_endpoint", "string", "S3 endpoint", "Address of the S3 server; AWS when left out.")
    _variable(base, "region", "string", "Region", "Region of the bucket.", "us-east-1")
    base["job_configuration"]["env"] |= {
        # a worker hands its own settings to what it starts, as plain values; null keeps these two back
        "PREFECT_API_AUTH_STRING": None,
        "PREFECT_API_KEY": None,
        "PREFECT_HOME": f"{_HOME}/prefect",  # not the worker's folder
        "TMPDIR": _HOME,  # on disk: a checkpoint in a /tmp in memory counts against the limit of the memory
        "RATCHET_STORE": "{{ store }}",
        "AWS_ENDPOINT_URL": "{{ s3_endpoint }}",
        "AWS_DEFAULT_REGION": "{{ region }}",
    }


def _docker(base: Template, pool: str) -> None:
    size = _SIZES[pool]
    _variable(base, "shm_size", "string", "Shared memory", "Size of /dev/shm.", "2g")
    _default(base, "mem_limit", size["memory"].replace("Gi", "g"))
    _default(base, "image_pull_policy", "IfNotPresent")
    _default(base, "auto_remove", True)  # logs are in the API; ended containers would fill the disk
    _fix(base, volumes=[f"ratchet-work:{_HOME}", f"/etc/ratchet/run:{_SECRETS}:ro"], privileged=False)
    base["job_configuration"]["env"] |= {
        # files of the host, so that `docker inspect` shows where the secrets are and not what they are
        "PREFECT_PROFILES_PATH": f"{_SECRETS}/profiles.toml",
        "AWS_SHARED_CREDENTIALS_FILE": f"{_SECRETS}/aws-credentials",
    }
    arguments: Template = {
        "user": f"{USER}:{USER}",
        "shm_size": "{{ shm_size }}",
        "init": True,  # passes SIGTERM on to the run, and reaps its children
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": {"/tmp": "rw,nosuid,nodev,size=64m"},  # noqa: S108 # the container's own
        "pids_limit": 4096,
    }
    if pool == "gpu":
        _variable(base, "gpus", "integer", "GPUs", "How many GPUs a run gets; -1 for all of the host.", 1)
        arguments["device_requests"] = [{"driver": "nvidia", "count": "{{ gpus }}", "capabilities": [["gpu"]]}]
    base["job_configuration"]["container_create_kwargs"] = arguments
    # everything of it is said above; what is left of the variable would have no effect
    del base["variables"]["properties"]["container_create_kwargs"]


def _kubernetes(base: Template, pool: str) -> None:
    size = _SIZES[pool]
    _default(base, "finished_job_ttl", 86_400)
    _fix(base, "namespace")
    manifest = base["job_configuration"]["job_manifest"]
    manifest["metadata"]["namespace"] = base["job_configuration"]["namespace"] = _NAMESPACE
    manifest["spec"]["template"]["spec"]["serviceAccountName"] = _SERVICE_ACCOUNT
    del base["variables"]["properties"]["service_account_name"]
    for name, value in (("cpu_request", size["cpu"]), ("memory_request", size["memory"])):
        _default(base, name, value)
    _default(base, "memory_limit", size["memory"])
    _variable(
        base, "termination_grace_seconds", "integer", "Grace period",
        "Seconds between SIGTERM and SIGKILL when a node is drained or a pod is evicted.", _GRACE_SECONDS[pool],
    )  # fmt: skip
    _variable(base, "shm_size", "string", "Shared memory", "Size of /dev/shm; counts as memory.", _SHARED_MEMORY)
    _variable(base, "work_size", "string", "Work folder", "Size of the folder for models and vectors.", size["work"])
    labels: Template = {"additionalProperties": {"type": "string"}}
    _variable(
        base, "node_selector", "object", "Node selector", "Labels of the nodes that may run this.",
        {"nvidia.com/gpu.present": "true"} if pool == "gpu" else {}, **labels,
    )  # fmt: skip
    _variable(
        base, "tolerations", "array", "Tolerations", "Taints of nodes that this may run on all the same.",
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if pool == "gpu" else [],
        items={"type": "object"},
    )  # fmt: skip
    pod = manifest["spec"]["template"]["spec"]
    pod |= {
        "automountServiceAccountToken": False,  # a run asks nothing of Kubernetes
        "nodeSelector": "{{ node_selector }}",
        "tolerations": "{{ tolerations }}",
        "terminationGracePeriodSeconds": "{{ termination_grace_seconds }}",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shm_size }}"}},
            {"name": "work", "emptyDir": {"sizeLimit": "{{ work_size }}"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    (container,) = pod["containers"]
    del container["args"], container["env"]  # the worker fills in its own command, and the environment from above
    container |= {
        "image": IMAGE,
        "envFrom": [{"secretRef": {"name": SECRET}}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 # the container's own
            {"name": "work", "mountPath": _HOME},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    if pool == "gpu":
        _variable(base, "gpus", "integer", "GPUs", "How many GPUs a run gets.", 1, minimum=1)
        # an extended resource is limited, never requested apart
        container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"


def _default(base: Template, name: str, value: object) -> None:
    """Give a variable that Prefect has another default; KeyError when an upgrade has taken it away."""
    base["variables"]["properties"][name]["default"] = value


def _fix(base: Template, *dropped: str, **values: object) -> None:
    """Take variables away, so that nobody but who edits the pool chooses them; those of `values` get a fixed one."""
    for name in (*dropped, *values):
        base["variables"]["properties"].pop(name, None)
        base["job_configuration"].pop(name, None)
    base["job_configuration"] |= values


def _variable(
    base: Template, name: str, kind: str, title: str, description: str, default: object = None, **schema: object
) -> None:
    """Add a variable of our own; a form shows it with title and description."""
    found: Template = {"type": kind, "title": title, "description": description, **schema}
    if default is not None:
        found["default"] = default
    base["variables"]["properties"][name] = found


def files() -> Iterator[tuple[Path, str]]:
    """Every stored template's path and what it must hold for the installed Prefect."""
    for pool in POOLS:
        for kind in KINDS:
            yield path(pool, kind), json.dumps(build(pool, kind), indent=2) + "\n"


if __name__ == "__main__":
    for file, text in files():
        file.write_text(text)
