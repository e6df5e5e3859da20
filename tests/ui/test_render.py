"""Pages of trajectories: nothing that is shown is run, and everything can be read."""

import pytest
from log_fixtures import HOSTILE, Tags, record, turn

from zs_lib.engines import SearchResult
from zs_lib.errors import ConfigError
from zs_lib.ui import render, theme


@pytest.mark.parametrize("shade", render.SHADES)
def test_what_is_shown_is_not_run(shade):
    hostile = record(HOSTILE, question=HOSTILE, documents=(HOSTILE,), tokens=True) | {
        "tokens": [[HOSTILE, -1.0], 3],
        "golden_answers": [HOSTILE],
    }
    pages = [
        render.trajectory(hostile, HOSTILE, shade),
        render.group([hostile], shade, titles=[HOSTILE]),
        render.documents(
            {HOSTILE: SearchResult.of([HOSTILE]), "b": SearchResult.failed(HOSTILE)},
            [HOSTILE],
            {HOSTILE: True},
        ),
    ]
    for page in pages:
        shown = Tags(page)
        assert {tag for tag, _ in shown.tags} <= {"div", "span", "b", "br"}
        assert all(set(attributes) <= {"style", "title"} for _, attributes in shown.tags)
        assert "<script>alert(1)</script>" in "".join(shown.texts)
        assert "\x1b" not in page and "‹U+001B›[31mred‹U+202E›" in page
        # MathJax finds no formula: a $ or \ stands alone in its element
        assert all(text in "$\\" or not set(text) & set("$\\") for text in shown.texts)


def luminance(color: str) -> float:
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("ink", "paper"), [("#222222", "#ffffff"), ("#ffffff", "#212121")])
def test_every_text_can_be_read(ink, paper):
    """WCAG AA: a contrast of 4.5 at least, on every ground that occurs; on white, and in JupyterLab Dark."""
    mixed, kinds = theme.mixed, [color for _, color in theme.KINDS.values()]
    grounds = [paper, *(mixed(color, theme.GROUND_SHARE, paper) for color in kinds)]
    shades = (theme.TRAINED_UP, theme.TRAINED_DOWN, theme.UNLIKELY)
    shaded = [mixed(color, theme.SHADE_SHARE, paper) for color in shades]
    words = [mixed(color, theme.WORD_SHARE, ink) for color in kinds]
    inks = [ink, mixed(ink, theme.FAINT_SHARE, paper), *words]
    pairs = [(one, ground) for one in inks for ground in grounds] + [(ink, ground) for ground in shaded]
    for one, ground in pairs:
        low, high = sorted((luminance(one), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (one, ground)
    assert len({word for word, _ in theme.KINDS.values()}) == len(
        theme.KINDS
    )  # a word each, for those who see no colours


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "“Oslo” is right"),
        ({"answer": "the christiania"}, "is right"),
        ({"answer": "Bergen"}, "“Bergen” has no word of it; right: Oslo or Christiania"),
        ({"answer": "Oslo city"}, "shares 1 word (of its 2) with “Oslo” (of 1)"),
        ({"answer": None, "stop_reason": "max_turns"}, "no answer; right: Oslo"),
        (
            {
                "answer": None,
                "stop_reason": "engine_failed",
                "turns": [turn("", "search", "x", error="no line")],
            },
            "left out of the training: no line",
        ),
    ],
)
def test_a_reward_is_explained(changes, reason):
    assert reason in render.why(record() | changes)


def test_turns_are_told_apart_by_words():
    invalid = turn("what </search>", "invalid", "")
    invalid["action"]["reason"] = "</search> closes nothing"
    unmade = turn("<search> again </search>", "search", "again")
    page = "".join(
        Tags(
            render.trajectory(
                record(noisy=True) | {"turns": [*record(noisy=True)["turns"], invalid, unmade]},
                simulated=True,
            )
        ).texts
    )
    for words in (
        "thought hm",
        "search what",
        "(noisy asked for)",
        "[✔ states the answer] It is Oslo.",
        "[– no answer] Not so.",
        "answer Oslo",
        "invalid (</search> closes nothing)",
        "search (not made: the last turn) again",
        "reward 1.00",
        "advantage +0.50",
    ):
        assert words in page, words
    assert "asked for" not in render.trajectory(record(noisy=True))  # a real engine is asked for nothing else


def test_tokens_are_shaded_by_what_was_logged():
    page = render.trajectory(record(), shade="logprob")
    assert (
        'title="p = 0.14, log p = -2.00"' in page
        and "7 observation tokens, not written by the policy" in page
    )
    down, up = (
        theme.mixed(color, theme.SHADE_SHARE, "#ffffff") for color in (theme.TRAINED_DOWN, theme.TRAINED_UP)
    )
    assert down in render.group([record(reward=0.0)], "advantage")
    by_turn = render.trajectory(record(turn_advantages=[0.5, -0.5]), shade="advantage")
    assert by_turn.index(up) < by_turn.index("7 observation tokens") < by_turn.index(down)
    assert "advantages of the turns +0.50, -0.50" in by_turn and "each turn by its own" in by_turn
    assert "logged without its tokens" in render.trajectory(record(tokens=False), shade="mask")
    with pytest.raises(ConfigError, match="Known: , logprob"):
        render.trajectory(record(), shade="rainbow")
