"""A model that accepts categories beyond its list: how it reads them, and that it never draws what stands for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onward
from onward.client.local import LocalModel
from onward.client.results import Done, Generated
from onward.errors import InvalidRequest
from tests.client.test_listed_only import OTHERS, RANKED, pairs
from tests.client.test_local import bits
from tests.helpers.analytic_models import markov

EURO = b"\xe2\x82\xac"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, LocalModel]:
    """The chain of `test_listed_only`, over words, characters and bytes."""
    markov(tmp_path, OTHERS, "abc", unknown=True, top=3, name="words")
    markov(tmp_path, OTHERS, "abc", unknown=True, top=3, name="characters", text="characters")
    markov(tmp_path, OTHERS, list(EURO), unknown=True, top=3, name="bytes", text="bytes")
    return {name: onward.load(tmp_path / name / "1") for name in ("words", "characters", "bytes")}


DRAWS: list[dict[str, Any]] = [
    {}, {"temperature": 0.0}, {"temperature": 5.0}, {"top_k": 1}, {"top_p": 0.1}, {"top_k": 2, "top_p": 0.9},
    {"repetition_penalty": 3.0}, {"logprobs": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", DRAWS, ids=map(str, DRAWS))
def test_only_listed_categories_are_drawn(options: dict[str, Any], models: dict[str, LocalModel]) -> None:
    """No option of the draw changes that, also after a, where the model expects an unlisted category most."""
    for inputs in (["a"], ["unlisted"], ["c", "other"]):
        *steps, done = models["words"].session().generate(100, seed=1, inputs=inputs, **options)
        assert len(steps) == 100
        for step in steps:
            assert isinstance(step, Generated)
            assert step.token in {"a", "b", "c"}
        assert isinstance(done, Done)
    paths = models["words"].session(inputs=["a"]).forecast(20, samples=20, seed=2, paths=True)["paths"]
    assert set(paths.ravel().tolist()) == {"a", "b", "c"}


def test_texts_may_have_characters_that_are_not_listed(models: dict[str, LocalModel]) -> None:
    """All of them are one category, which has an index and no name; a drawn text has listed characters alone."""
    model = models["characters"]
    forms: list[Any] = ["aXbé🙂", ["a", "X", "b", "é", "🙂"], [0, 3, 1, 3, 3]]
    several, *same = [model.session().steps(inputs) for inputs in forms]
    assert all(bits(outputs) == bits(several) for outputs in same)
    unlisted = [("a", 0.3), ("b", 0.3), ("c", 0.2)]
    assert [pairs(several, row) for row in range(5)] == [RANKED["a"], unlisted, RANKED["b"], unlisted, unlisted]
    *_, done = model.session(inputs="aX").generate(300, seed=5)
    assert isinstance(done, Done)
    assert done.text is not None
    assert len(done.text) == 300
    assert set(done.text) == set("abc")
    for stop in ("X", "aX"):
        with pytest.raises(InvalidRequest, match=r"stop\[0\]: '.*' contains a value that is never drawn"):
            list(model.session().generate(3, stop=[stop]))


def test_texts_may_have_bytes_that_are_not_listed(models: dict[str, LocalModel]) -> None:
    """A byte that is not listed counts by itself, not with the character of which it is a part."""
    model = models["bytes"]
    found = model.session().steps("a€é")
    assert bits(found) == bits(model.session().steps(list("a€é".encode())))
    unlisted = [0.3, 0.3, 0.2]
    assert np.exp(found["log_probability"][[0, 4, 5]]) == pytest.approx(np.array([unlisted] * 3))
    assert found["top"][1:4].tolist() == [[None, 0xAC, 0x82], [0xE2, 0x82, 0xAC], [0x82, None, 0xAC]]
    *steps, _ = model.session(inputs="a€").generate(90, seed=5)
    assert {step.token for step in steps if isinstance(step, Generated)} == set(EURO)


def test_a_number_beyond_the_index_of_all_others_is_refused(models: dict[str, LocalModel]) -> None:
    session = models["words"].session()
    assert np.exp(session.step(3)["log_probability"]) == pytest.approx([0.3, 0.3, 0.2])
    for wrong in (4, -1):
        with pytest.raises(InvalidRequest, match="is none of the 3 categories"):
            session.step(wrong)
