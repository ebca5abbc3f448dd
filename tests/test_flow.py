"""The flow as Prefect sees it."""

import inspect

from prefect.utilities.callables import parameter_schema

from flows import pipeline as module
from tasks.stages import STAGES


def test_the_flow_calls_the_seven_stages_in_order():
    source = inspect.getsource(module.pipeline.fn)
    places = [source.index(f"{name}(run") for name in STAGES]
    assert len(places) == 7 and places == sorted(places)


def test_the_form_of_the_flow_is_the_config_schema_with_defaults_bounds_and_descriptions():
    schema = parameter_schema(module.pipeline).model_dump_for_openapi()
    assert list(schema["properties"]) == ["config"]
    fine_tune = schema["definitions"]["FineTuneConfig"]["properties"]
    assert fine_tune["learning_rate"]["default"] == 2e-4
    assert fine_tune["learning_rate"]["maximum"] == 1 and fine_tune["learning_rate"]["exclusiveMinimum"] == 0
    assert fine_tune["lr_scheduler"]["enum"] == ["linear", "cosine", "constant"]
    assert all("description" in field for field in fine_tune.values())
    filters = schema["definitions"]["CleanConfig"]["properties"]["filters"]
    assert [chosen["name"] for chosen in filters["default"]] == ["empty", "broken_text", "too_short", "too_long"]
