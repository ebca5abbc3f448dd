"""Config files: every mistake is refused before anything runs, with the field's path and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import PipelineConfig
from tasks.config_file import load
from tasks.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = sorted(
    path for ending in ("yaml", "yml") for path in CONFIGS.glob(f"*.{ending}")
)  # accelerate/ holds its own
BASIC = "collect: {sources: [{path: a.jsonl}, {path: b.csv}]}\n"


@pytest.fixture
def refused(tmp_path: Path):
    """The message with which `text`, or the basic config with `text` behind it, is refused."""

    def message(text: str, *overrides: str, basic: bool = True) -> str:
        path = tmp_path / "config.yaml"
        path.write_text((BASIC if basic else "") + text, encoding="utf-8")
        with pytest.raises(ConfigError) as refusal:
            load(path, list(overrides))
        assert refusal.value.exit_code == 2
        return str(refusal.value)

    return message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # unknown keys
        ("fine_tune: {learning_rat: 1}", "fine_tune.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("finetune: {}", "finetune: unknown key; did you mean 'fine_tune'?"),
        (
            "split: {zzz: 1}",
            "split.zzz: unknown key; known: validation, test, method, stratify_by,",
        ),
        ("clean: {filters: [{name: empty, parms: {}}]}", "clean.filters.0.parms: unknown key; did you mean 'params'?"),
        # wrong types
        ("fine_tune: {epochs: '3'}", "fine_tune.epochs: input should be a valid number, got '3'"),
        ("fine_tune: {max_steps: 1.5}", "fine_tune.max_steps: input should be a valid integer"),
        ("fine_tune: {scratch_control: 1}", "fine_tune.scratch_control: input should be a valid boolean, got 1"),
        ("name: no", "name: input should be a valid string, got False"),
        ("clean:", "clean: input should be a valid dictionary"),
        ("evaluate: {metrics: rouge_l}", "evaluate.metrics: input should be a valid list, got 'rouge_l'"),
        ("1: 2", "1: keys should be strings"),
        # out of bounds
        ("fine_tune: {learning_rate: 0}", "fine_tune.learning_rate: input should be greater than 0, got 0"),
        ("fine_tune: {epochs: .inf}", "fine_tune.epochs: input should be a finite number, got inf"),
        ("fine_tune: {weight_decay: .nan}", "fine_tune.weight_decay: input should be"),
        ("split: {test: 1.0}", "split.test: input should be less than 1, got 1.0"),
        ("export: {formats: []}", "export.formats: list should have at least 1 item"),
        ("name: Has Spaces", "name: string should match pattern"),
        ("fine_tune: {lr_scheduler: step}", "fine_tune.lr_scheduler: input should be 'linear', 'cosine' or 'constant'"),
        # what does not exist, or does not go together
        ("split: {validation: 0.5, test: 0.5}", "split: validation + test must stay below 1"),
        ("format: {template: alpaka}", "format.template: unknown template 'alpaka'; known: auto, "),
        ("evaluate: {metrics: [bleu]}", "evaluate.metrics: unknown metric 'bleu'; known: exact_match, rouge_l"),
        ("clean: {filters: [{name: to_short}]}", "clean.filters.0: unknown filter 'to_short'; known: "),
        (
            "clean: {filters: [{name: empty, params: {max: 1}}]}",
            "clean.filters.0: filter 'empty' has no parameter 'max'",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_is_allowed(refused, text, says):
    assert f"config.yaml: {says}" in refused(text)


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ("", "collect: is required"),
        ("collect: {sources: []}", "collect.sources: list should have at least 1 item"),
        ("collect: {sources: [{}]}", "collect.sources.0: a source has either a 'path' or a 'hub' dataset"),
        (
            "collect: {sources: [{path: a/x.csv}, {path: b/x.csv}]}",
            "collect.sources: two sources go by the name 'x.csv'",
        ),
        ("collect: {sources: [{path: a, format: fields}]}", "collect.sources.0: 'fields' and 'format: fields' go tog"),
        ("collect: {sources: [{path: a, fields: {}}]}", "collect.sources.0: 'fields' and 'format: fields' go together"),
        ("collect: {sources: [{path: a, limt: 1}]}", "collect.sources.0.limt: unknown key; did you mean 'limit'?"),
    ],
)
def test_mistakes_in_the_sources(refused, sources, says):
    assert f"config.yaml: {says}" in refused(f"name: x\n{sources}", basic=False)


def test_all_mistakes_are_told_at_once(refused):
    said = refused("split: {seed: -1}\nfine_tune: {epochs: 0, seeds: 1}")
    assert [line.removeprefix(said.split("split")[0]).split(":")[0] for line in said.splitlines()] == [
        "split.seed", "fine_tune.epochs", "fine_tune.seeds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a config is a mapping of sections, got NoneType"),
        ("- collect", "a config is a mapping of sections, got list"),
        ("name: a\nname: b", "key 'name' is given twice"),
        ("split: {seed: 1, seed: 2}", "key 'seed' is given twice"),
        ("name: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ("name: [", "is not valid YAML"),
        ("name: 2020-13-45", "is not valid YAML"),
        ("name: !!bool perhaps", "is not valid YAML"),
        ("name: !!timestamp today", "is not valid YAML"),
        ("name: 0b_", "is not valid YAML"),
        ("name: *nothing", "is not valid YAML"),
        ("[" * 3000, "is not valid YAML"),
        ("extends: 3", "extends: takes the path of another config, got 3"),
        ("extends: missing.yaml", "missing.yaml: there is no such config"),
        ("extends: .", "cannot be read"),
        ("extends: config.yaml", "config.yaml: extends itself"),
    ],
)
def test_what_is_no_config_is_refused(refused, text, says):
    assert says in refused(text, basic=False)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"a\.yaml: cannot be read"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("fine_tune.learning_rate=3e-4", "fine_tune.learning_rate", 3e-4),
        ("fine_tune.learning_rate=1", "fine_tune.learning_rate", 1.0),
        ("evaluate.max_rows=null", "evaluate.max_rows", None),
        ("fine_tune.scratch_control=true", "fine_tune.scratch_control", True),
        ("evaluate.metrics=[rouge_l]", "evaluate.metrics", ["rouge_l"]),
        ("export.formats=[]", None, "export.formats: list should have at least 1 item"),
        ("collect.sources.1.path=c=d.csv", "collect.sources.1.path", "c=d.csv"),
        ("name=a-b", "name", "a-b"),
        ("fine_tune.seed=-1", None, "fine_tune.seed: input should be greater than or equal to 0, got -1"),
        ("fine_tune.lr=1", None, "fine_tune.lr: unknown key"),
        ("fine_tune.learning_rate", None, "write section.field=value"),
        ("=3", None, "write section.field=value"),
        ("split..seed=3", None, "write section.field=value"),
        ("name=[", None, "the value is not valid YAML"),
        ("name=2020-13-45", None, "the value is not valid YAML"),
        ("collect.sources.2.path=c", None, "'2' is no position in a list of 2"),
        ("collect.sources.-1.path=c", None, "'-1' is no position in a list of 2"),
        ("collect.sources.².path=c", None, "'²' is no position in a list of 2"),
        ("collect.sources.0.path.x.y=c", None, "path is not a section"),
    ],
)
def test_overrides(tmp_path, refused, override, field, value):
    if field is None:
        assert value in refused("", override)
        return
    (tmp_path / "config.yaml").write_text(BASIC)
    found: Any = load(tmp_path / "config.yaml", ["fine_tune.seed=7", override])
    assert found.fine_tune.seed == 7
    for name in field.split("."):
        found = found[int(name)] if isinstance(found, list) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    path=st.from_regex(r"[a-z_.]{0,8}", fullmatch=True), value=st.text(alphabet="ab01.:-!&*[]{}#'\"\n²é", max_size=9)
)
def test_any_override_is_applied_or_refused(tmp_path_factory, path, value):
    config = tmp_path_factory.getbasetemp() / "any_override.yaml"
    config.write_text(BASIC)
    for override in (f"{path}={value}", f"name={value}", f"collect.sources.{value}.path=x"):
        try:
            assert isinstance(load(config, [override]), PipelineConfig)
        except ConfigError:
            continue


def test_extends_lays_a_config_over_another_in_its_own_folder(tmp_path):
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    (tmp_path / "base.yaml").write_text(BASIC + "split: {seed: 1, test: 0.2}\nname: base\n")
    (tmp_path / "sub" / "middle.yaml").write_text("extends: ../base.yaml\nsplit: {seed: 2}\nformat: {packing: false}\n")
    (tmp_path / "sub" / "deeper" / "top.yaml").write_text(
        "extends: ../middle.yaml\nname: top\ncollect: {sources: [{path: c.csv}], max_reject_ratio: 0.5}\n"
    )
    config = load(tmp_path / "sub" / "deeper" / "top.yaml")
    assert (config.name, config.split.seed, config.split.test, config.format.packing) == ("top", 2, 0.2, False)
    assert [source.path for source in config.collect.sources] == ["c.csv"]
    (tmp_path / "base.yaml").write_text("extends: sub/deeper/top.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load(tmp_path / "base.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_config_loads_under_the_name_of_its_file(path):
    assert load(path).name == path.stem
