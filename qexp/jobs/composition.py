"""How configurations are found and composed: Hydra's loader with bits by number, layers by pattern, and a gate.

Nothing of Hydra is patched: a source of our own reads the files (scheme `qexp://`), and a loader of our own
stands in front of Hydra's, so that every composition, in every process and under every launcher, goes through it.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ConfigDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qexp.bits import BITS, parse_bits
from qexp.errors import ConfigError
from qexp.jobs.security import check_hydra, check_overrides
from qexp.paths import config_dir

_BITS_CHOICE = re.compile(r"(?P<key>\+{0,2}bits(@[^=]*)?)=(?P<value>\d+)\s*$")
_LAYER_KEY = re.compile(
    r"(?P<plus>\+{0,2})layers\.(?P<pattern>.+)\.(?P<setting>bits|quantizer|scope)(?==|$)", re.DOTALL
)
_ENCODED = "glob_"

_AS_FILED = {"optimizer": False, "schedule": True, "alpha_regularization": True}
"""Groups whose options list every setting, in one level, and whether a typed option is as its file has it.

An optimizer takes the recipe's values over: a paper trains at some rate and decay, whatever makes steps of them.
"""

LAYERS_RULE = "a layer is set apart by a pattern: layers.'<glob>'.bits=, .quantizer= or .scope="

NAMED = ("model", "dataset", "quantizer", "observer")
"""Groups whose choice is kept by name, for people and for tables; not every command has all of them."""

FAILURE = "_failure_"
"""The key under which a job's configuration says that it could not be composed, and why."""


def encode_override(override: str) -> str:
    """Return a typed `key=value` in the form that Hydra's grammar can read; most are returned as they are.

    >>> encode_override("bits=4")
    "bits='4'"
    >>> encode_override("bits=2,4")
    'bits=2,4'
    >>> encode_override("layers.'layer1.*'.bits=4") == "++layers.glob_6c61796572312e2a.bits=4"
    True
    """
    if match := _BITS_CHOICE.match(override):
        return f"{match['key']}='{match['value']}'"
    if match := _LAYER_KEY.match(override.split("=", 1)[0] + "="):
        value = override.split("=", 1)[1] if "=" in override else ""
        return f"{_encode_layer_key(match)}={value}"
    return override


def _encode_layer_key(match: re.Match[str]) -> str:
    pattern = match["pattern"].strip("'\"")
    if not pattern.startswith(_ENCODED):
        pattern = _ENCODED + pattern.encode().hex()
    return f"++layers.{pattern}.{match['setting']}"


def decode_layers(layers: Any) -> dict[str, Any]:
    """Return `layers` with its patterns as the user wrote them; what was typed last comes last.

    Raises:
        ConfigError: it is no mapping.
    """
    if not isinstance(layers, Mapping):
        raise ConfigError(f"layers={layers}: {LAYERS_RULE}.")
    decoded: dict[str, Any] = {}
    for key, settings in layers.items():
        pattern = decode_pattern(key)
        before = decoded.pop(pattern, {})
        both = isinstance(before, dict) and isinstance(settings, dict)
        decoded[pattern] = {**before, **settings} if both else settings
    return decoded


def decode_pattern(key: str) -> str:
    """Undo `encode_override` for one key under `layers`, or for a whole override (for display)."""
    return re.sub(rf"{_ENCODED}([0-9a-f]+)", lambda found: bytes.fromhex(found[1]).decode(), key)


_FILES: dict[tuple[object, ...], ConfigResult] = {}
"""Files that were read, by who asked, where, and what the file was like."""


def _weight_bits(*, _root_: DictConfig) -> object:
    """Return the bits of the weights, 32 where the method leaves them in float: `${qexp.weight_bits:}`.

    A layer set apart may quantize its weights all the same, so with one the bits stand as typed.
    """
    is_float = OmegaConf.select(_root_, "quantizer.weight") is None and not OmegaConf.select(_root_, "layers")
    return 32 if is_float else OmegaConf.select(_root_, "bits.weight")


OmegaConf.register_new_resolver("qexp.weight_bits", _weight_bits, replace=True)


class QexpSource(FileConfigSource):
    """YAML files of a folder, plus `bits/<n>` and `bits/w<n>a<m>`, which need no file.

    In a defaults list a number means the option of that name: `bits: 4`.
    """

    @staticmethod
    def scheme() -> str:
        """Return the prefix of this source's paths."""
        return "qexp"

    def is_group(self, config_path: str) -> bool:
        """Return whether it is a group: a folder, or `bits`, which has none."""
        return config_path == "bits" or super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Return whether it is an option: a file, or a width of `bits`."""
        return super().is_config(config_path) or _bits_node(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the options of a group, for completion and for the errors."""
        listed = super().list(config_path, results_filter) if super().is_group(config_path) else []
        if config_path == "bits" and results_filter in (None, ObjectType.CONFIG):
            pairs = [f"w{weight}a{activation}" for weight in BITS for activation in BITS]
            return sorted({*listed, *map(str, BITS), *pairs})
        return listed

    def load_config(self, config_path: str) -> ConfigResult:
        """Return an option's content."""
        node = None if super().is_config(config_path) else _bits_node(config_path)
        if node is not None:
            return ConfigResult(
                config=OmegaConf.create(node),
                path=self.full_path(),
                provider=self.provider,
                header={"package": None},
            )
        return copy.deepcopy(self._read(config_path))

    def _read(self, config_path: str) -> ConfigResult:
        """Return a file's content, parsed once while it stays as it is: a sweep's jobs share most files."""
        try:
            found = Path(self.path, self._normalize_file_name(config_path)).stat()
        except OSError:  # it is not there, which Hydra says in its own words
            return super().load_config(config_path)
        key = (self.provider, self.path, config_path, found.st_mtime_ns, found.st_size)
        if key not in _FILES:
            _FILES[key] = super().load_config(config_path)
            if isinstance(content := _FILES[key].config, DictConfig):
                _name_choices(content.get("defaults"))
        return _FILES[key]


def _bits_node(config_path: str) -> dict[str, int | None] | None:
    group, _, name = config_path.removesuffix(".yaml").rpartition("/")
    if group != "bits":
        return None
    try:
        weight, activation = parse_bits(name)
    except ConfigError:
        return None
    return {"weight": weight, "activation": activation, "first": None, "last": None}


def _name_choices(defaults: ListConfig | None) -> None:
    """Take every choice of a defaults list as a name: Hydra stops at `bits: 4` without saying where."""
    for item in defaults or ():
        if isinstance(item, DictConfig):
            for key in item:
                if isinstance(item[key], (bool, int, float)):
                    item[key] = str(item[key])


class QexpLoader(ConfigLoaderImpl):
    """Hydra's loader behind our gate: overrides in our notation, and nothing in `hydra` that could run code."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._checked: dict[tuple[object, ...], DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the checked jobs: each job's process gets a loader, and would get the whole sweep with it."""
        return {**self.__dict__, "_checked": {}}

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose, as Hydra does. Raises ConfigError for what could run code, before anything looks at it."""
        encoded = [encode_override(override) for override in overrides]
        check_overrides(encoded)
        encoded = [self._named_choice(override) for override in encoded]
        config = super().load_configuration(config_name, encoded, run_mode, from_shell, validate_sweep_overrides)
        node: Any = OmegaConf.to_container(config.hydra, resolve=False)
        check_hydra(node)
        _encode_sweep(config)
        self._replace_recipes_choices(config, config_name, encoded, run_mode)
        return config

    def _replace_recipes_choices(
        self, config: DictConfig, command: str | None, encoded: Sequence[str], run_mode: RunMode
    ) -> None:
        """Let a typed choice take the place of a recipe's: what the recipe set for another one falls away.

        Hydra would hand a cosine the milestones of the recipe's steps, and "no penalty" the recipe's lambda. What
        was itself typed stays.
        """
        typed = {override.lstrip("+").partition("=")[0] for override in encoded}
        for group in typed.intersection(_AS_FILED):
            choice = config.hydra.runtime.choices[group]
            option, node = self._option(group, choice), config[group]
            found: Any = OmegaConf.to_container(node, resolve=False)
            free = [key for key in {**found, **option} if typed.isdisjoint((f"{group}.{key}", f"~{group}.{key}"))]
            left = [key for key in free if key not in option]
            own = {key: option[key] for key in free if _AS_FILED[group] and key in option}
            if not left and all(found.get(key) == value for key, value in own.items()):
                continue
            if self._chosen(group, command, encoded, run_mode) == choice:
                continue  # the recipe's own choice, typed again, is no other one
            with open_dict(config):
                for key in left:
                    del node[key]
                node.update(own)

    def _option(self, group: str, name: str) -> dict[str, Any]:
        """Return the settings of an option's file, on top of those of the options that its defaults name."""
        option = self.repository.load_config(f"{group}/{name}")
        assert option is not None  # it was composed
        settings: dict[str, Any] = {}
        for entry in option.defaults_list or ():
            if isinstance(entry, ConfigDefault) and entry.path not in (None, "_self_"):
                settings |= self._option(group, entry.path.removeprefix(f"/{group}/"))
        own: Any = OmegaConf.to_container(option.config, resolve=False)
        return settings | own

    def _chosen(self, group: str, command: str | None, encoded: Sequence[str], run_mode: RunMode) -> str | None:
        """Return the option of `group` that would be there, had nobody typed one."""
        others = [override for override in encoded if override.lstrip("+").partition("=")[0] != group]
        return self.compute_defaults_list(command, others, run_mode).overrides.known_choices.get(group)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """Load a file; a launcher's is checked against the launcher's own types, which are stored under its name.

        Hydra does so for any file, and says each time that this is on its way out. Only launchers' share names.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
            return super()._load_single_config(default, repo)

    def _named_choice(self, override: str) -> str:
        """Quote what chooses an option but reads as a number, so that Hydra looks for an option of that name.

        Raises:
            ConfigError: several options where one is chosen, or no key at all.
        """
        (parsed,) = OverridesParser.create().parse_overrides([override])
        group = str(parsed.key_or_group).partition("@")[0]
        if not group:
            raise ConfigError(f"cannot read '{override}': write key=value.")
        if parsed.is_delete() or parsed.is_sweep_override() or not self.repository.group_exists(group):
            return override
        value = parsed.value()
        if isinstance(value, list) and not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{override}: name one option of the group '{group}'.")
        if value is None or isinstance(value, (bool, int, float)):
            key, _, text = override.partition("=")
            return f"{key}='{text.strip()}'"
        return override

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose one job of a sweep; one that cannot be composed says why under `FAILURE`, and fails alone.

        Hydra composes each job twice, to check the sweep and to run it; the second time takes over the first.
        """
        job = (id(master_config), *sweep_overrides)
        if job not in self._checked:
            self._checked[job] = self._compose_job(master_config, sweep_overrides)
            return self._checked[job]
        return self._checked.pop(job)

    def _compose_job(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        except (HydraException, OmegaConfBaseException, YAMLError, ConfigError) as error:
            config = super().load_sweep_config(master_config, [])
            with open_dict(config):
                config[FAILURE] = self.describe(error, master_config.hydra.job.config_name, sweep_overrides)
                config.hydra.overrides.task = list(sweep_overrides)
            return config

    def describe(self, error: Exception, command: str, overrides: list[str]) -> str:
        """Return a composition's error in a line of the user's own words."""
        if isinstance(error, ConfigError):
            return str(error)
        from qexp.jobs.messages import one_line

        return one_line(error, self, command, overrides)


def _encode_sweep(config: DictConfig) -> None:
    """Let `hydra.sweeper.params` name layers by pattern, as the command line does."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    if not isinstance(params, DictConfig):
        return
    with open_dict(config.hydra):
        encoded = {encode_override(f"{key!s}=").removesuffix("="): value for key, value in params.items()}
        config.hydra.sweeper.params = encoded


def search_path(extra: Path | None = None) -> ConfigSearchPath:
    """Return where to look: Hydra's own configurations, then qexp's, then the user's `--config-dir`.

    Raises:
        ConfigError: the folder is not there.
    """
    Plugins.instance().register(QexpSource)
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"qexp://{config_dir()}")
    if extra is not None:
        if not extra.is_dir():
            raise ConfigError(f"--config-dir {extra}: there is no such folder.")
        path.append("command-line", f"qexp://{extra.resolve()}")
    path.append("schema", "structured://")
    return path


def loader(extra: Path | None = None) -> QexpLoader:
    """Return a loader over qexp's configurations and the user's folder `extra`."""
    return QexpLoader(search_path(extra))


def compose(command: str, overrides: Sequence[str], extra: Path | None = None) -> dict[str, Any]:
    """Return what a command line composes to: plain containers, resolved, without Hydra's own part.

    Layers stand by their patterns, and `names` has the options chosen of `NAMED`.

    Raises:
        ConfigError: it cannot be composed; one line, as the command itself says it.
    """
    version.setbase("1.3")
    configs = loader(extra)
    try:
        config = configs.load_configuration(command, list(overrides), RunMode.RUN)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(configs.describe(error, command, list(overrides))) from error
    choices = config.hydra.runtime.choices
    names = {key: str(choices[key]) for key in NAMED if key in choices}
    with open_dict(config):
        del config["hydra"]
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {**plain, "layers": decode_layers(plain["layers"]), "names": names}


def decode_overrides(overrides: Sequence[str]) -> str:
    """Return a job's overrides as the user would type them, for display."""
    shown = (re.sub(r"^\+\+(?=(layers|dataset|trainer)\.)", "", decode_pattern(item)) for item in overrides)
    return " ".join(
        item.replace("bits='", "bits=").rstrip("'") if item.startswith("bits='") else item for item in shown
    )
