"""The job that writes a first vocabulary: from options, by questions, and never over a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.jobs.init import InitConfig, main

OPTIONS = {"behaviours": "revenue:long_term,click,order", "predictions": "add_to_cart,margin", "scenes": "home,cart"}


def test_options_become_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = main(InitConfig(**OPTIONS, output=str(tmp_path / "below" / "v.yaml")))
    of = Vocabulary.load(path)
    assert (of.behaviour_names, of.fusion_parameters) == (("revenue", "click", "order"), ("add_to_cart", "margin"))
    assert "recfuse explore" in capsys.readouterr().out
    before = path.read_bytes()
    with pytest.raises(InvalidFieldError, match="nothing is overwritten"):
        main(InitConfig(**OPTIONS, output=str(path)))
    assert path.read_bytes() == before


def test_questions_are_asked_only_where_nothing_is_given(tmp_path: Path) -> None:
    answers = iter(["", "revenue:long_term", "margin", ""])
    path = main(InitConfig(output=str(tmp_path / "v.yaml")), lambda _: next(answers))
    assert Vocabulary.load(path).fusion_parameters == ("margin",)
    assert next(answers, None) is None

    def never(question: str) -> str:
        raise AssertionError(question)

    main(InitConfig(**OPTIONS, output=str(tmp_path / "w.yaml")), never)


def test_a_link_that_leads_nowhere_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "v.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidFieldError, match="output"):
        main(InitConfig(**OPTIONS, output=str(tmp_path / "v.yaml")))
    assert not (tmp_path / "elsewhere").exists()
