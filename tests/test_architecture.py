"""The walls of the house: who may import whom, and what is imported only where it is used."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ["collect", "clean", "split", "format", "fine_tune", "evaluate", "export"]
LAYERS = [
    {"errors", "layout", "schema", "registry", "progress", "memory", "markup", "encoded", "disk", "parent"},
    {"losses", "devices", "compiled", "curves"},
    {"filters", "repairs", "personal_data", "metrics", "templates", "truncation", "packing"},
    {"config", "families"},
    {"config_file", "engine"},
    {"store", "remote_store", "ledger", "sources", "formats", "texts", "shingles", "near_duplicates"},
    {"base_model", "fingerprint", "held_out", "scratch", "exporters", "profile", "sampling", "contract"},
    {"near_pairs", "decontaminate", "duplicates", "placing", "leak"},
    {"checkpoints", "interrupts", "precision", "optimizers", "requirements", "adapters"},
    {"training_rows", "training_log"},
    {"job"},
    {"trainer", "training"},
    {"stages", "launch", "estimate", "model_card", "run_record"},
    {"plan", "gc", "report", "data_report", "funnel", "pictures", *STAGES},
    {"check", "sweep", "sweep_report"},
]
"""A module may import from its own layer and from those above it in this list."""

HEAVY = {"torch", "transformers", "prefect", "evaluate", "datasets", "pandas", "pyarrow", "numpy", "numba", "fsspec"}
HEAVY |= {"huggingface_hub", "ray", "optuna", "matplotlib", "peft", "sklearn"}
LIGHT = [
    "flows/cli.py",
    *(f"tasks/config/{path.name}" for path in sorted((ROOT / "tasks" / "config").glob("*.py"))),
    "tasks/families/__init__.py",
    *(f"tasks/{name}.py" for name in ("config_file", "plan", "stages", "store", "fingerprint", "base_model")),
    *(f"tasks/{name}.py" for name in ("remote_store", "gc")),
    *(
        f"tasks/{name}.py"
        for name in ("repairs", "templates", "run_record", "report", "data_report", "funnel", "registry", "errors")
    ),
    *(f"tasks/filters/{path.name}" for path in sorted((ROOT / "tasks" / "filters").glob("*.py"))),
    "tasks/personal_data.py",
    "tasks/markup.py",
    "tasks/engine.py",
    *(f"tasks/sources/{name}.py" for name in ("__init__", "local", "place", "endings", "row", "hub")),
    "tasks/metrics/__init__.py",
]
"""What a fully cached run imports."""


def layer(module: str) -> int:
    name = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def imports(path: Path, *, top_level: bool) -> list[str]:
    """Modules that a file imports: all of them, or those that it imports whenever it is imported."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "tasks" else []
            found += submodules or [node.module]
    return found


def modules(folder: str) -> list[Path]:
    return sorted(
        path for path in (ROOT / folder).rglob("*.py") if path.parent != ROOT / folder or path.stem != "__init__"
    )


@pytest.mark.parametrize("path", modules("tasks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_towards_the_foundations(path: Path):
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path, top_level=False):
        assert not name.startswith("flows"), f"{path} imports {name}"
        assert name.split(".")[0] != "prefect", "tasks know nothing of Prefect"
        if name.startswith("tasks."):
            assert layer(name) <= own, f"{path} imports {name}, which stands above it"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_neither_each_other_nor_the_store(stage: str):
    names = imports(ROOT / "tasks" / f"{stage}.py", top_level=False)
    assert "tasks.store" not in names
    assert not {f"tasks.{other}" for other in STAGES if other != stage} & set(names)


@pytest.mark.parametrize("path", LIGHT)
def test_what_a_cached_run_imports_is_light(path: str):
    heavy = {name.split(".")[0] for name in imports(ROOT / path, top_level=True)} & HEAVY
    assert not heavy


def test_only_the_config_reads_yaml_and_only_the_runtime_applies_task():
    readers = [path.name for path in [*modules("tasks"), *modules("flows")] if "yaml" in imports(path, top_level=False)]
    assert readers == ["config_file.py"]
    appliers = [path.name for path in modules("flows") if "@task" in path.read_text()]
    assert appliers == ["runtime.py"]


def test_only_the_engine_knows_ray():
    assert [path.name for path in modules("tasks") if "ray" in imports(path, top_level=False)] == ["engine.py"]


def test_nothing_opens_pickles_or_runs_remote_code():
    for path in [*modules("tasks"), *modules("flows")]:
        text = path.read_text()
        assert "trust_remote_code=True" not in text
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(imports(path, top_level=False))
        assert "torch.load" not in text


def test_every_package_is_installed():
    """A package that pyproject.toml does not list is missing for everyone but those who installed in place."""
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("tasks", "flows")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == present
