"""One run, opened once: each part of it when it is first asked for, and never again.

A part that is not there, or that cannot be read, is a value with its reason: damage of one file does not end the
reading of the others. A rule that needs a part calls `need`, which raises `Unknown` with that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from gradience.adapters.files import CONFIG_NAME, STATE_OF_OPTIMIZER, AdapterFiles, find_files, holds_adapter
from gradience.configs.document import arguments_in, peft_in, read_document
from gradience.configs.files import MAX_JSON_BYTES, read_bytes
from gradience.configs.settings import Layer, stack
from gradience.configs.training import PICKLED, fields_in
from gradience.errors import GradienceError, Unknown, few
from gradience.folder.beside import MOST, RECIPES, base_of, beside
from gradience.folder.found import Found, Place, find, weights_alone
from gradience.folder.runs import read_run
from gradience.importers.files import sha256_of
from gradience.reading.logs import Reading
from gradience.schema import Json
from gradience.schema.audit import Beside
from gradience.schema.events import ConfigSnapshot

if TYPE_CHECKING:
    from gradience.adapters.layout import Adapter
    from gradience.folder.checkpoints import OwnedCheckpoint
    from gradience.folder.moments import OptimizerState
    from gradience.folder.prompts import PromptLink

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of a run: where it is, and what it holds, which is read when it is first asked for."""

    place: Place
    read: Callable[[Path], T]

    @cached_property
    def _outcome(self) -> tuple[T | None, GradienceError | None]:
        if self.place.path is None:
            return None, None
        try:
            return self.read(self.place.path), None
        except GradienceError as fault:
            return None, fault

    @property
    def held(self) -> T | None:
        """What it holds; None if it is not there or cannot be read."""
        return self._outcome[0]

    @property
    def fault(self) -> GradienceError | None:
        """The error of a part that is there and cannot be read."""
        return self._outcome[1]

    @property
    def reason(self) -> str:
        """Why it holds nothing; empty if it holds something."""
        held, fault = self._outcome
        return "" if held is not None else self.place.reason if fault is None else fault.message

    def take(self) -> T:
        """What it holds.

        Raises:
            GradienceError: it is not there, or cannot be read.
        """
        held, fault = self._outcome
        if fault is not None:
            raise fault
        if held is None:
            raise GradienceError(self.place.reason)
        return held

    def need(self) -> T:
        """What it holds, for a rule.

        Raises:
            Unknown: it is not there, or cannot be read; the message is the reason.
        """
        if self.held is None:
            raise Unknown(self.reason)
        return self.held


class OpenAdapter(NamedTuple):
    """An adapter, and where it comes from in a report's words; factors in memory come from nowhere."""

    adapter: Adapter
    path: str = ""
    weights: str = ""
    config: Path | None = None
    """None for a format without a config, and for weights whose config is lost."""

    @property
    def is_unscaled(self) -> bool:
        """Whether the config that would state its scale is lost."""
        return self.config is None and self.adapter.file_format.is_peft

    @classmethod
    def of_files(cls, path: Path, files: AdapterFiles, adapter: Adapter) -> OpenAdapter:
        """An adapter that was read from files."""
        config = files.config if files.config.is_file() else None
        return cls(adapter, path=str(path), weights=str(files.weights), config=config)


@dataclass(frozen=True)
class Documents:
    """What the files of one run hold.

    Attributes:
        found: where they are.
        adapter_config: a config that does not lie beside the weights.
        weights_file: a weights file of another name.
        in_hand: an adapter that is open already.
    """

    found: Found
    adapter_config: Path | None = None
    weights_file: Path | None = None
    in_hand: OpenAdapter | None = None

    @classmethod
    def of_adapter(cls, adapter: OpenAdapter) -> Documents:
        """What is known of an adapter that is open already."""
        return cls(weights_alone(Path(adapter.path)), in_hand=adapter)

    @cached_property
    def log(self) -> Part[Reading]:
        """What the run's log says."""
        at = self.found.log
        return Part(at, lambda path: at.reading or read_run(path, at.run))

    @cached_property
    def checkpoints(self) -> list[OwnedCheckpoint]:
        """The checkpoints, and whether each is of the log's run; none without a log."""
        from gradience.folder.checkpoints import OwnedCheckpoint, identify  # importers, only where there is a log

        if (reading := self.log.held) is None:
            return []
        run, states = reading.run, reading.states
        return [OwnedCheckpoint(each, identify(each, run, states)) for each in self.found.checkpoints]

    @cached_property
    def weights(self) -> Place:
        """Where the weights are: of the newest checkpoint of the log's run, if the newest of all is another run's."""
        chosen = self.found.weights
        if all(checkpoint.path != chosen.path for checkpoint in self.found.checkpoints):
            return chosen
        if not any(each.folder.path == chosen.path and each.identity.of_run is False for each in self.checkpoints):
            return chosen
        own = [c.folder.path for c in self.checkpoints if c.identity.of_run and holds_adapter(c.folder.path)]
        name = "" if chosen.path is None else chosen.path.name
        if not own:
            return Place(reason=f"{name} is of another run than the log")
        return Place(own[-1], chosen=f"{own[-1].name} is the last of the log's run; {name} is of another")

    @cached_property
    def digest_of(self) -> Callable[[Path], str]:
        """The digest of a file, each read for it once; an import of the log has those of its own."""
        known = {} if self.log.held is None else self.log.held.digests
        return cache(lambda path: known.get(path) or sha256_of(path))

    @cached_property
    def adapter(self) -> Part[OpenAdapter]:
        """The adapter, of which no tensor is read yet."""
        return Part(self.weights, self._open_adapter)

    def _open_adapter(self, path: Path) -> OpenAdapter:
        if self.in_hand is not None:
            return self.in_hand
        from gradience.adapters.open import read_adapter  # numpy: only those with weights pay for it

        files = find_files(path, config=self.adapter_config, weights=self.weights_file)
        raw = self._config.held if files.config == self._config.place.path else None
        return OpenAdapter.of_files(path, files, read_adapter(files, config=raw, unscaled=True))

    @property
    def folders(self) -> list[Path]:
        """Where the run's files lie, by precedence: the folder of the weights, and the one that was searched."""
        weights, folder = self.weights.path, self.found.folder
        own = None if weights is None else weights if weights.is_dir() else weights.parent
        return list(dict.fromkeys(place for place in (own, folder) if place is not None))

    @cached_property
    def optimizer_state(self) -> Part[OptimizerState]:
        """The state beside the weights, else in the last checkpoint that is not known to be of another run."""
        strange = {each.folder.path for each in self.checkpoints if each.identity.of_run is False}
        last = [each.path for each in self.found.checkpoints if each.path not in strange][-1:]
        at = next((path for each in (*self.folders[:1], *last) if (path := each / STATE_OF_OPTIMIZER).is_file()), None)
        return Part(Place(at, f"no {STATE_OF_OPTIMIZER} beside the weights or in the last checkpoint"), _read_optimizer)

    def _bytes(self, path: Path) -> bytes:
        """The bytes of a file of settings, which the import of a log may have read."""
        held = {} if self.log.held is None else self.log.held.held
        return held[path] if path in held else read_bytes(path, MAX_JSON_BYTES)

    @cached_property
    def _config(self) -> Part[bytes]:
        """The adapter's config: beside its weights, or where they were, or in the last checkpoint that has one."""
        of_run = (checkpoint.path for checkpoint in reversed(self.found.checkpoints))
        places = (folder / CONFIG_NAME for folder in (*self.folders[:1], *of_run))
        beside = next((path for path in places if path.is_file()), None)
        return Part(self.found.config._replace(path=self.adapter_config or beside), self._bytes)

    @cached_property
    def config_fields(self) -> Part[dict[str, Json]]:
        """All fields of the adapter's config, by their own names."""
        return Part(self._config.place, lambda path: fields_in(path, self._config.take()))

    @cached_property
    def config(self) -> Part[Layer]:
        """The configuration that was named by itself, else the adapter's."""
        if self.found.config.path is not None:
            return Part(self.found.config, read_settings)
        return self.adapter_settings

    @cached_property
    def adapter_settings(self) -> Part[Layer]:
        """The settings in the adapter's own config."""
        return Part(self._config.place, lambda path: peft_in(path, self.config_fields.take()))

    @cached_property
    def training_fields(self) -> Part[dict[str, Json]]:
        """All training arguments, by their own names."""
        at = Place(self.found.training, reason="no training arguments in the folder")
        return Part(at, lambda path: fields_in(path, self._bytes(path)))

    @cached_property
    def training(self) -> Part[Layer]:
        """The training arguments."""
        return Part(self.training_fields.place, lambda path: arguments_in(path, self.training_fields.take()))

    @cached_property
    def settings(self) -> Part[Layer]:
        """All settings as one: of the log, under those of the adapter's config, under the training arguments.

        A configuration that was named by itself goes before the arguments. A pickle of arguments that cannot be read,
        such as one with a class of the user's own, is left out, and it is said, where something else states settings.
        """
        reading = self.log.held
        logged = None if reading is None or reading.settings.config == ConfigSnapshot() else reading.settings
        used, chosen = (None, "") if self.found.config.path is not None else (self.training, self.found.config.chosen)
        if (why := self._unused) and (logged is not None or self.config.place.path is not None):
            used, chosen = None, why
        seen = () if logged is None else {source.path for source in logged.sources}
        parts = [part for part in (self.config, used) if part is not None and part.place.path is not None]
        if not parts and logged is None:
            return self.recipe
        log = None if logged is None else self.found.log.path
        at = next((part.place.path for part in reversed(parts)), log)

        def stacked(_: Path) -> Layer:
            own = [part.take() for part in parts if str(part.place.path) not in seen]
            return stack([logged, *own] if logged is not None else own)

        return Part(self.found.config._replace(path=at, chosen=chosen), stacked)

    @cached_property
    def recipe(self) -> Part[Layer]:
        """The only recipe in the folder that was searched; a file that states no settings is none."""
        at, folder = self.found.config, self.found.folder
        files = [] if folder is None else sorted(path for path in folder.iterdir() if path.suffix in RECIPES)
        recipes = {path: layer for path in files[:MOST] if (layer := _stated_in(path)) is not None}
        if len(recipes) > 1:
            at = at._replace(reason=f"several recipes: {few([path.name for path in recipes])}")
        return Part(at._replace(path=next(iter(recipes)) if len(recipes) == 1 else None), recipes.__getitem__)

    @cached_property
    def prompts(self) -> tuple[PromptLink, ...]:
        """What the files that lie there say of the prompt; none of an adapter in memory."""
        if self.in_hand is not None and not self.in_hand.path:
            return ()
        from gradience.folder.prompts import prompt_links  # only where the prompt is judged

        named, arguments = self.found.config.path, self.training_fields
        stated = (
            {} if arguments.held is None or arguments.place.path is None else {arguments.place.path: arguments.held}
        )
        base = (self.config_fields.held or {}).get("base_model_name_or_path")
        return prompt_links(
            self.folders,
            recipes=() if named is None else (named,),
            held={**self._recipes, **stated},
            trained_on=base if isinstance(base, str) else None,
        )

    @cached_property
    def _recipes(self) -> dict[Path, dict[str, Json]]:
        """The fields of recipes that were read for what lies beside the adapter."""
        return {}

    @property
    def _unused(self) -> str:
        """Why a pickle of training arguments cannot be used; empty if it can, or there is none."""
        path = self.training.place.path
        if (
            self.found.config.path is not None
            or path is None
            or path.suffix not in PICKLED
            or self.training.fault is None
        ):
            return ""
        return f"{path.name} was not used: {self.training.fault.message.removeprefix(f'{path}: ')}"

    @property
    def optimizer(self) -> str | None:
        """The optimizer by the training arguments, else by the log; None if neither tells."""
        if self.training.held is not None and (name := self.training.held.config.optimizer.name) is not None:
            return name
        logged = None if self.log.held is None else self.log.held.run.config
        return None if logged is None else logged.optimizer.name

    def beside(self, base: str | None = None) -> Beside:
        """What a command that is printed is filled in with; `base` is the base's name by an adapter that was opened."""
        if self.in_hand is not None and not self.in_hand.path:
            return Beside(base=base_of([base]))
        if not self.folders:
            return Beside(base=base_of([base], self.found.path.parent))
        log = None if self.log.held is None else self.log.held.path
        told = [] if log is None else [log if log.is_dir() else log.parent]
        return beside(self.folders[0], self._base_names(base), self._recipes, passed=told)

    def _base_names(self, named: str | None) -> Iterator[str | None]:
        """The base's names, the nearest to the weights first: a snapshot of settings holds no path."""
        yield named
        if self.in_hand is None and (whole := self.settings.held) is not None:
            yield whole.base
            yield whole.config.model_name


def _read_optimizer(path: Path) -> OptimizerState:
    from gradience.folder.moments import read_optimizer  # numpy: only those with weights pay for it

    return read_optimizer(path)


def _stated_in(path: Path) -> Layer | None:
    """The settings in a file; None if it states none."""
    with suppress(GradienceError):
        return read_document(path)
    return None


def open_run(path: Path) -> Documents:
    """What the run in a folder, or of a log, left.

    Raises:
        GradienceError: there are several runs, or the folder cannot be read.
    """
    return Documents(find(path))


def read_settings(path: Path) -> Layer:
    """The settings of one file, or of the run in a folder.

    Raises:
        GradienceError: it holds none, or cannot be read.
    """
    return open_run(path).settings.take() if path.is_dir() else read_document(path)
