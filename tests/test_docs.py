"""What README and docs say is tried."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tasks import filters
from tasks.config import PipelineConfig
from tasks.config_file import load
from tasks.filters import FILTERS
from tasks.registry import Registry
from tasks.repairs import REPAIRS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)
    return next(text for text in blocks if containing in text)


def test_make_pipeline_stands_within_the_first_twenty_lines():
    assert any("make pipeline" in line for line in README.splitlines()[:20])


def test_the_filter_of_the_readme_has_six_lines_and_works(monkeypatch: pytest.MonkeyPatch):
    source = block("python", "def shouting")
    assert len(source.splitlines()) == 6
    registry = Registry("filter")
    monkeypatch.setattr(filters, "FILTERS", registry)
    exec(compile(source, "README.md", "exec"), vars(filters) | {"FILTERS": registry})  # noqa: S102
    examples = pd.DataFrame({"output": ["STOP IT NOW", "Stop it now", "123"]})
    assert registry["shouting"](examples).tolist() == [True, False, False]
    registry.check("shouting", {"max_capital_ratio": 0.5})
    assert "shouting" not in FILTERS.names()


def test_the_config_of_the_readme_is_valid(tmp_path: Path):
    text = block("yaml", "# my.yaml").replace("configs/quickstart.yaml", str(ROOT / "configs" / "quickstart.yaml"))
    (tmp_path / "my.yaml").write_text(text)
    config = load(tmp_path / "my.yaml")
    assert config.model.base == "Qwen/Qwen3-0.6B"
    assert config.fine_tune.learning_rate == 2e-5


def test_every_link_in_the_docs_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_placeholder_is_left():
    assert not re.search(r"^[A-Z_]{5,}$", README, flags=re.M)


def test_every_filter_and_repair_is_shown_in_the_quickstart_in_use_or_as_a_comment():
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    shown = set(re.findall(r"\{name: (\w+)", text))
    assert shown == {*FILTERS.names(), *REPAIRS.names()}
    in_use = yaml.safe_load(re.sub(r"^    # - \{", "    - {", text, flags=re.M))
    config = PipelineConfig.model_validate(in_use)
    assert len(config.clean.filters) == len(FILTERS.names()), "what stands in a comment must be valid as well"
