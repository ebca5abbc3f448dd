"""Which stages would run, which are cached, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import base_model, fingerprint, requirements, sources
from tasks.config import PipelineConfig, SourceConfig
from tasks.disk import digest_file, digest_json
from tasks.errors import ConfigError
from tasks.stages import STAGES, Stage
from tasks.store import ArtifactRef, ArtifactStore, Manifest

SHOWN_DIFFERENCES = 8
NO_PART = {"runs_on"}
"""Settings that say where a stage runs and not what it makes; they are no part of a key."""


@dataclass(frozen=True)
class Step:
    """What is known of one stage before it runs."""

    stage: Stage
    parts: dict[str, Any]  # what the key is made of; empty while an input is not known
    key: str  # "" while an input is not known
    manifest: Manifest | None  # of the cached artifact
    why: str  # why it is cached or will run
    memory: ArtifactRef | None = None  # the artifact that the stage remembers

    @property
    def ref(self) -> ArtifactRef | None:
        """Reference to the cached artifact."""
        return self.manifest and ArtifactRef(self.stage.name, self.key, self.manifest.digest)


def plan(config: PipelineConfig, store: ArtifactStore) -> list[Step]:
    """One step per stage, in order.

    Behind the first stage that must run, keys are unknown: its new artifact may turn out equal to the old one.
    """
    refs: dict[str, ArtifactRef] = {}
    steps = []
    for stage in STAGES.values():
        missing = [name for name in stage.inputs if name not in refs]
        step = Step(stage, {}, "", None, f"waits for {missing[0]}") if missing else look_up(stage, config, refs, store)
        if step.ref:
            refs[stage.name] = step.ref
        steps.append(step)
    return steps


def look_up(stage: Stage, config: PipelineConfig, refs: Mapping[str, ArtifactRef], store: ArtifactStore) -> Step:
    """The step for a stage whose inputs are known."""
    inputs = {name: refs[name].digest for name in stage.inputs} | outside_inputs(stage, config)
    parts = {
        "settings": getattr(config, stage.name).model_dump(mode="json", exclude=NO_PART),
        "inputs": inputs,
        "code": fingerprint.code_digests(stage.module),
        "versions": fingerprint.versions(stage.versions),
    }
    remembered = _remembered(stage, config, parts, store) if stage.remembers else ""
    memory = _memory(stage, config, remembered, store)
    if remembered:
        parts["inputs"] = inputs | {"previous": remembered}
    key = digest_json({"stage": stage.name, **parts})[:32]
    manifest = store.find(stage.name, key)
    if manifest is None and remembered and memory is None:  # what it remembered is gone as well
        parts["inputs"] = inputs
        key = digest_json({"stage": stage.name, **parts})[:32]
        manifest = store.find(stage.name, key)
    why = "cached" if manifest else _why_not(stage, key, parts, store)
    return Step(stage, parts, key, manifest, why, memory)


def _remembered(stage: Stage, config: PipelineConfig, parts: dict[str, Any], store: ArtifactStore) -> str:
    """The digest of the artifact that a stage remembers: the last of its lineage, or "".

    When the last one was made from just these parts, it is the one to find again: then what it remembered counts.
    """
    last = next(iter(_lineage(stage, config, store)), None)
    if last is None:
        return ""
    inputs = {name: digest for name, digest in last.inputs.items() if name != "previous"}
    old = {"settings": last.settings, "inputs": inputs, "code": last.code, "versions": last.versions}
    same = old == parts
    return last.inputs.get("previous", "") if same else last.digest


def _memory(stage: Stage, config: PipelineConfig, digest: str, store: ArtifactStore) -> ArtifactRef | None:
    """The artifact of a stage's lineage with that digest."""
    known = (each for each in (_lineage(stage, config, store) if digest else []) if each.digest == digest)
    return next((ArtifactRef(stage.name, each.key, each.digest) for each in known), None)


def _lineage(stage: Stage, config: PipelineConfig, store: ArtifactStore) -> list[Manifest]:
    """The artifacts of a stage that this pipeline made with these settings, newest first."""
    settings = _deciding(getattr(config, stage.name).model_dump(mode="json", exclude=NO_PART))
    mine = (each for each in store.manifests(stage.name) if each.pipeline == config.name)
    own = [each for each in mine if _deciding(each.settings) == settings]
    return sorted(own, key=lambda manifest: manifest.created, reverse=True)


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that only say when to stop."""
    return {name: value for name, value in settings.items() if name != "max_leak_ratio"}


def outside_inputs(stage: Stage, config: PipelineConfig) -> dict[str, str]:
    """Digests of what a stage reads that no stage made: the source files, the base model."""
    if stage.name == "collect":
        base_model.resolve(config.model, config.store_folder)  # what cannot work is told before any data is touched
        requirements.check(config.fine_tune)
        return {f"source {source.label}": sources.digest(source) for source in config.collect.sources}
    if stage.name == "clean":
        return _files_of_clean(config)
    if stage.base:
        folder = base_model.resolve(config.model, config.store_folder)
        family = base_model.family(config.model, folder)
        return {f"base {stage.base}": base_model.digest(folder, weights=stage.base == "model"), "family": family}
    return {}


def _files_of_clean(config: PipelineConfig) -> dict[str, str]:
    """Digests of the files that settings of clean name: benchmarks, and the tokenizers of filters."""
    found = {
        f"benchmark {path}": sources.digest(SourceConfig(path=path)) for path in config.clean.decontaminate.against
    }
    for chosen in config.clean.filters:
        if tokenizer := chosen.params.get("tokenizer"):
            found[f"tokenizer {tokenizer}"] = _tokenizer_digest(str(tokenizer))
    return found


def _tokenizer_digest(path: str) -> str:
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        return digest_file(file)
    except OSError as error:
        raise ConfigError(f"clean.filters: the tokenizer {path} cannot be read: {error.strerror}") from None


def _why_not(stage: Stage, key: str, parts: dict[str, Any], store: ArtifactStore) -> str:
    """What differs from the most similar artifact in the store; of equally similar ones, the newest."""
    if store.is_quarantined(stage.name, key):
        return "its artifact was damaged and is in quarantine"
    nearest: list[str] | None = None
    for manifest in sorted(store.manifests(stage.name), key=lambda manifest: manifest.created, reverse=True):
        found = differences(manifest.model_dump(include=set(parts)), parts)
        if nearest is None or len(found) < len(nearest):
            nearest = found
    if nearest is None:
        return "never ran"
    more = len(nearest) - SHOWN_DIFFERENCES
    return "; ".join(nearest[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is different in the parts of two keys, a line each."""
    old, new = _flatten(old), _flatten(new)
    return [_difference(path, old, new) for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]


def _difference(path: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    kind, _, name = path.partition(".")
    if path == "inputs.previous":
        return "the last split, which it remembers, is another"
    if path not in old:
        return f"{name} is new" if kind != "settings" else f"{name} set to {new[path]!r}"
    if path not in new:
        return f"{name} is gone"
    if kind == "settings":
        return f"{name}: {old[path]!r} → {new[path]!r}"
    if kind == "versions":
        return f"{name} {old[path]} → {new[path]}"
    return f"{name} changed" if kind == "inputs" else f"code of {name} changed"


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}, "c": [2]}` as `{"a.b": 1, "c.0": 2}`; inputs, code and versions keep their names whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= _flatten(inner, f"{path}.{key}" if path else str(key))
    return flat
