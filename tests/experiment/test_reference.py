"""The schema and the page that `fsd reference` writes."""

import json

import jsonschema
import pytest
import yaml
from places import ROOT

from fsd.experiment import params, reference, schema


def test_the_committed_files_are_what_the_model_says():
    for path, text in (
        (reference.SCHEMA, reference.json_schema()),
        (reference.PAGE, reference.page()),
    ):
        assert (ROOT / path).read_text(encoding="utf-8") == text, "run `fsd reference`"


def test_params_yaml_fits_its_schema_and_a_typo_does_not():
    rules = json.loads(reference.json_schema())
    raw = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), Loader=params._Loader)
    jsonschema.validate(raw, rules)
    raw["datasets"]["figures"]["student"]["train"]["epoch"] = 3
    with pytest.raises(jsonschema.ValidationError, match="epoch"):
        jsonschema.validate(raw, rules)


def test_every_block_has_its_section_and_every_key_its_line():
    listed = {model for _, model in reference.BLOCKS}
    models = {
        value
        for value in vars(schema).values()
        if isinstance(value, type)
        and issubclass(value, schema.Strict)
        and value is not schema.Strict
    }
    assert listed == models
    for model in models:
        assert list(reference.comments(model)) == list(model.model_fields)
    assert reference.comments(schema.Data)["input_px"] == "side of the square network input"
