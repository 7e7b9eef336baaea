"""The demonstration: four runs, a page, and sentences that follow the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from training_cases import quiet

from qtrain.training.demo import demo as module
from qtrain.training.demo.story import Story
from qtrain.training.intervals import Interval


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DEPTH", 1)
        patch.setattr(module, "GOAL", 0.999)
        place = tmp_path_factory.mktemp("demo")
        return module.demo(epochs=1, threads=1, runs_dir=str(place), say=quiet)


def gap(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high, n=360, method="")


def test_a_page_of_its_runs(story: Story) -> None:
    assert list(story.results)[:3] == ["full precision", "int8", "int4"]
    assert story.results["int4"].config.bits == 4
    if "int4 mended" in story.results:
        assert story.found is not None and story.results["int4 mended"].config.recipe
    page = story.path.read_text()
    assert story.path.name == "demo.html" and page.count('class="strip"') == len(story.results) - 1
    assert not any(word in page for word in ('src="', "<link", "@import", "fetch("))


def test_what_is_said_follows_the_numbers(story: Story) -> None:
    def told(low: float, high: float, gain: Interval | None) -> str:
        gaps = {**story.gaps, "int8": gap(-0.01, 0.01), "int4": gap(low, high)}
        return str(replace(story, gaps={**gaps, "int4 mended": gap(-0.01, 0.01)}, gain=None)) + str(
            replace(story, gaps=gaps, gain=gain).breaks
        )

    assert "it falls behind" in told(-0.2, -0.1, None) and "True" in told(-0.2, -0.1, None)
    assert "does not break here" in told(-0.01, 0.01, None)
    assert "falls behind" not in told(-0.01, 0.01, None)


def test_a_story_holds_only_where_all_of_it_does(story: Story) -> None:
    same, below = gap(-0.01, 0.01), gap(-0.2, -0.1)
    good = replace(story, gaps={"int8": same, "int4": below}, gain=gap(0.1, 0.2))
    assert good.holds and good.mended
    assert not replace(good, gain=same).holds
    assert not replace(good, gaps={"int8": below, "int4": below}).holds
    assert not replace(good, gaps={"int8": same, "int4": same}).holds
