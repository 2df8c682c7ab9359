"""The gate before Hydra: what a configuration file could use to run code is refused before anything reads it.

Hydra itself builds objects from its own part of the configuration: callbacks, logging factories, launchers and
sweepers. Configurations are shared between people, so those keys may only hold what qexp ships.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from qexp.errors import ConfigError

LAUNCHERS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
    }
)
SWEEPERS = frozenset({"hydra._internal.core_plugins.basic_sweeper.BasicSweeper"})

_CODE_KEYS = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging")
_HARMLESS_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SHELL_KEYS = ("setup", "teardown", "python", "srun_args", "use_srun")
_LAUNCHER_KEYS = {
    "additional_parameters": (
        "begin", "deadline", "dependency", "exclusive", "hint", "licenses", "mail-type", "mail-user", "nice",
        "nodelist", "ntasks-per-core", "requeue", "reservation", "switches", "threads-per-core", "tmp", "wckey",
    ),
    "ray.init": (
        "num_cpus", "num_gpus", "object_store_memory", "include_dashboard", "log_to_driver", "logging_level",
    ),
    "ray.remote": ("num_cpus", "num_gpus", "memory", "max_retries", "accelerator_type"),
}  # fmt: skip
"""Mappings that a launcher passes on unread, and what in them starts no program and reaches no other machine."""
_RESOLVERS = (
    "oc.select:",
    "oc.env:",
    "oc.decode:",
    "oc.dict.keys:",
    "oc.dict.values:",
    "hydra:",
    "now:",
    "qexp.weight_bits:",
)


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse typed overrides that reach what Hydra builds by itself, before they are composed.

    Raises:
        ConfigError: names the key.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+~").partition("@")[0].replace("/", ".")
        if name.startswith(_CODE_KEYS) and value.strip("'\"") not in ("none", "null", "disabled"):
            raise ConfigError(
                f"{key}: refused, Hydra would build Python objects from it. qexp writes run.log itself."
            )
        if name.startswith("hydra.") and name.endswith("_target_"):
            raise ConfigError(f"{key}={value}: refused, only hydra/launcher=<name> chooses a launcher.")
        if name == "hydra.searchpath":
            raise ConfigError(f"{key}: refused, name a folder of your own with --config-dir.")


def check_hydra(node: Mapping[str, object]) -> None:
    """Refuse a composed `hydra` node that would build anything but the launchers and sweepers shipped here.

    Args:
        node: plain containers, interpolations unresolved.

    Raises:
        ConfigError: names the key and what it held.
    """
    if node.get("callbacks"):
        raise ConfigError("hydra.callbacks: refused, Hydra would build Python objects from it. Remove it.")
    for key in ("job_logging", "hydra_logging"):
        for path, value in _leaves(_below(node, key), f"hydra.{key}"):
            name = path.rpartition(".")[2]
            code = name in ("()", "class", "_target_", ".") or (isinstance(value, str) and "ext://" in value)
            if code or (isinstance(value, str) and "${" in value):
                raise ConfigError(f"{path}={value}: refused, a logging factory can run any code. Remove it.")
        logging = node.get(key)
        if isinstance(logging, Mapping) and logging.get("root") is not None:
            raise ConfigError(f"hydra.{key}: refused, qexp writes the run's own run.log. Remove it.")
    for path, value in _leaves(_below(node, "job", "env_set"), "hydra.job.env_set"):
        if path.rpartition(".")[2] not in _HARMLESS_VARIABLES:
            raise ConfigError(f"{path}={value}: refused, set environment variables outside of configurations.")
    if node.get("searchpath"):
        raise ConfigError("hydra.searchpath: refused, name a folder of your own with --config-dir.")
    _check_plugin(node, "launcher", LAUNCHERS)
    _check_plugin(node, "sweeper", SWEEPERS)
    _check_launcher(node)


def _check_plugin(node: Mapping[str, object], key: str, allowed: Iterable[str]) -> None:
    for path, value in _leaves(_below(node, key), f"hydra.{key}"):
        name = path.rpartition(".")[2]
        if name in ("_target_", "()", "class") and (path != f"hydra.{key}._target_" or str(value) not in allowed):
            shipped = ", ".join(sorted(target.rpartition(".")[2] for target in allowed))
            raise ConfigError(f"{path}={value}: refused, a {key} is one of {shipped}.")
        if key == "launcher" and path.split(".")[2].partition("[")[0] in _SHELL_KEYS and value:
            raise ConfigError(f"{path}={value}: refused, it is a command of a shell.")


def _check_launcher(node: Mapping[str, object]) -> None:
    """Refuse what a launcher would write into a shell's script, or hand to a program that it starts."""
    for path, value in _leaves(_below(node, "launcher"), "hydra.launcher"):
        ours = path == "hydra.launcher.submitit_folder"
        if isinstance(value, str) and not ours and ("${" in value or not value.isprintable()):
            raise ConfigError(f"{path}={value!r}: refused, a launcher's setting is one line, without ${{...}}.")
    for where, allowed in _LAUNCHER_KEYS.items():
        for name, value in _mapping(_below(node, "launcher", *where.split("."))).items():
            if name not in allowed and value is not None:
                known = ", ".join(sorted(allowed))
                raise ConfigError(f"hydra.launcher.{where}: {name!r} is refused, here one may set {known}.")


def _mapping(node: object) -> Mapping[str, object]:
    return node if isinstance(node, Mapping) else {}


def _below(node: object, *keys: str) -> object:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return {} if node is None else node


def _leaves(node: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield (dotted path, value) of everything below `node` that is no container."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from _leaves(value, f"{path}[{position}]")
    else:
        yield path, node


def check_interpolations(node: object, path: str = "config") -> None:
    """Refuse every `${...}` but references to other keys and OmegaConf's own resolvers.

    Raises:
        ConfigError: names the key.
    """
    for where, value in _leaves(node, path):
        if isinstance(value, str):
            for part in value.split("${")[1:]:
                if ":" in part.partition("}")[0] and not part.startswith(_RESOLVERS):
                    raise ConfigError(f"{where}={value}: refused, this resolver is not one of qexp's.")
