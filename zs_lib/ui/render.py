"""What there is to look at, as HTML that stands alone: trajectories, documents, a study's state, a training's curves.

The same text is shown by JupyterLab, papermill's output, nbviewer and GitHub: inline styles only, no script, nothing
loaded. Kinds are told by a word as well as by a colour (Okabe and Ito's, darkened until they read on white). Whatever a
model or a document says is escaped and shown as it is: tags, control characters, and what MathJax would typeset.
"""

from __future__ import annotations

import html
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from zs_lib import protocol
from zs_lib.analysis import drawing, figures
from zs_lib.config.values import pick
from zs_lib.engines import SearchResult
from zs_lib.launch import progress
from zs_lib.launch.progress import ArmState, clock
from zs_lib.qa import scoring
from zs_lib.rl.collapse import collapse_warnings
from zs_lib.runs import Run


@dataclass(frozen=True)
class Kind:
    """How one kind of text is shown: its word, the colour of the word and of the edge, and the ground."""

    word: str
    color: str
    ground: str


KINDS = {
    "think": Kind("thought", "#595959", "#f5f5f5"),
    "search": Kind("search", "#0b5394", "#eaf2fa"),
    "documents": Kind("documents", "#0b6647", "#e9f6f0"),
    "answer": Kind("answer", "#983b00", "#fdf0e6"),
    "invalid": Kind("invalid", "#861a59", "#fbeaf3"),
}
INK, FAINT, PAPER = "#222222", "#595959", "#ffffff"
TRAINED_UP, TRAINED_DOWN, UNLIKELY = (150, 208, 241), (242, 200, 110), (242, 190, 90)
"""Grounds of shaded tokens at full strength (red, green, blue)."""
SHADES = {"": "kinds", "logprob": "log-probability", "advantage": "advantage", "mask": "loss mask"}
"""What tokens can be shaded by → its name."""
STOPS = {
    "answer": "it answered",
    "max_turns": "it searched again in its last turn",
    "length": "no room for another turn",
    "invalid": "no search or answer in its last turn",
    "engine_failed": "the search engine failed",
}
STATES = {"finished": "✔", "running": "▶", "unfinished": "◐", "missing": "○", "damaged": "✘"}
CARD = (
    f"display:inline-block;vertical-align:top;width:{{width}};max-width:100%;box-sizing:border-box;margin:0 8px 10px 0;padding:8px 10px;"
    f"border:1px solid #cccccc;border-radius:6px;background:{PAPER};color:{INK};line-height:1.4;font-size:13px;text-align:left;"
    "overflow-wrap:anywhere"
)
NARROW, WIDE = "285px", "760px"
FULL_SURPRISE = 3.0
"""Nats at which a token is shaded at full strength."""
_BLOCK = re.compile(r"<(think|search|answer)>(.*?)</\1>", re.DOTALL)
_MATH = re.compile(r"[$\\]")


def text(value: object) -> str:
    """Anything as HTML text that no viewer interprets. Control characters become visible; each $ and backslash stands in
    an element of its own, across which MathJax looks for no formula."""
    return _MATH.sub(lambda found: f"<span>{found.group()}</span>", html.escape(protocol.visible(str(value))))


def trajectory(record: dict, title: str = "", shade: str = "", simulated: bool = False) -> str:
    """A record of `trajectories` turn by turn, with its reward, and why it got it.

    `shade` is a key of SHADES: tokens one by one instead of kinds. `simulated`: the engine was asked for useful or noisy
    documents, and the view says for which. ConfigError for another shade.
    """
    return _card(
        WIDE,
        f"{title} {record['question']}",
        record,
        shade,
        simulated,
        abs(record.get("advantage", 0)) or 1.0,
    )


def group(
    records: Sequence[dict], shade: str = "", simulated: bool = False, titles: Sequence[str] = ()
) -> str:
    """Trajectories side by side (on a phone: below each other); numbered where they have no `titles`."""
    titles = titles or [f"rollout {number}" for number in range(1, len(records) + 1)]
    scale = max((abs(record.get("advantage", 0)) for record in records), default=0) or 1.0
    cards = (
        _card(NARROW, title, record, shade, simulated, scale)
        for record, title in zip(records, titles, strict=True)
    )
    asked = "<br>".join(dict.fromkeys(text(record["question"]) for record in records))
    return f'<div><div style="margin-bottom:4px"><b>{asked}</b></div>{"".join(cards)}</div>'


def _card(width: str, title: str, record: dict, shade: str, simulated: bool, scale: float) -> str:
    """`scale` is the advantage at which tokens are shaded at full strength."""
    pick("shade", shade, SHADES)
    body = (
        _tokens(record, shade, scale)
        if shade
        else "".join(_turn(turn, record, simulated) for turn in record["turns"])
    )
    return f'<div style="{CARD.format(width=width)}"><b>{text(title)}</b>{body}{_outcome(record)}</div>'


def why(record: dict) -> str:
    """One sentence on a reward: the prediction against the golden answer that it comes nearest to."""
    prediction, golden = record["answer"], record["golden_answers"]
    expected = f"right: {' or '.join(golden[:3])}{' …' if len(golden) > 3 else ''}"
    if record["stop_reason"] == "engine_failed":
        errors = [turn["error"] for turn in record["turns"] if turn["error"]]
        return f"left out of the training: {errors[-1] if errors else 'a search failed'}"
    if prediction is None:
        return f"no answer; {expected}"
    nearest = max(golden, key=lambda one: scoring.f1(prediction, [one]))
    said, meant = (Counter(scoring.normalize_answer(one).split()) for one in (prediction, nearest))
    if said == meant:
        return f"“{prediction}” is right"
    shared = (said & meant).total()
    if not shared:
        return f"“{prediction}” has no word of it; {expected}"
    return f"“{prediction}” shares {shared} word{'s'[: shared > 1]} (of its {said.total()}) with “{nearest}” (of {meant.total()})"


def _outcome(record: dict) -> str:
    reward, advantage = record["reward"], record.get("advantage")
    shown = "no reward" if reward is None else f"reward {reward:.2f}"
    parts = [
        f"<b>{shown}</b>: {text(why(record))}",
        f"stop: {text(STOPS.get(record['stop_reason'], record['stop_reason']))}",
    ]
    if advantage is not None:
        parts.append(f"advantage {advantage:+.2f}")
    return (
        f'<div style="margin-top:6px;border-top:1px solid #dddddd;padding-top:4px">{"<br>".join(parts)}</div>'
    )


def _turn(turn: dict, record: dict, simulated: bool) -> str:
    lines, rest, action = [], turn["text"], turn["action"]
    if action["kind"] == "invalid":
        lines.append(_line("invalid", rest, f"({action['reason']})"))
    else:
        for block in _BLOCK.finditer(rest):
            note = "" if block[1] != "search" or turn["query"] is not None else "(not made: the last turn)"
            lines.append(_line(block[1], block[2].strip(), note))
        if loose := _BLOCK.sub("", rest).strip():
            lines.append(_line("think", loose, "(outside of tags)"))
    if turn["query"] is not None:
        lines.append(_shown(turn, record, simulated))
    return "".join(lines)


def _shown(turn: dict, record: dict, simulated: bool) -> str:
    if turn["status"] == "failed":
        return _line("invalid", turn["error"], "(the search failed)")
    asked = ("noisy asked for" if turn["noisy"] else "useful asked for") if simulated else ""
    if not turn["documents"]:
        return _line("documents", "none", f"({asked})" if asked else "")
    return _line(
        "documents", "", asked and f"({asked})", _listed(turn["documents"], record["golden_answers"])
    )


def _line(kind: str, said: str, note: str = "", body: str = "") -> str:
    look = KINDS[kind]
    style = f"border-left:4px solid {look.color};background:{look.ground};margin:3px 0;padding:2px 8px;white-space:pre-wrap"
    word = f'<b style="color:{look.color}">{look.word}</b>'
    note = f' <span style="color:{FAINT}">{text(note)}</span>' if note else ""
    return f'<div style="{style}">{word}{note} {text(said)}{body}</div>'


def _listed(documents: Iterable[str], answers: Sequence[str]) -> str:
    """Documents one below the other; where the answers are known, each with the word whether one stands in it."""
    verdicts = (
        _verdict(scoring.contains(document, answers), "states the answer", "no answer") if answers else "–"
        for document in documents
    )
    return "".join(
        f'<div style="margin-top:2px">{verdict} {text(document)}</div>'
        for verdict, document in zip(verdicts, documents, strict=True)
    )


def _verdict(holds: bool, yes: str, no: str) -> str:
    color = KINDS["documents"].color if holds else FAINT
    return f'<span style="color:{color};font-size:11px">[{"✔ " + yes if holds else "– " + no}]</span>'


def _tokens(record: dict, shade: str, scale: float) -> str:
    """The token stream as it was trained: what the policy wrote, shaded; what it was shown, as a number of tokens."""
    if "tokens" not in record:
        return f'<div style="color:{FAINT};margin:4px 0">This run was logged without its tokens: they cannot be shaded.</div>'
    advantage = record.get("advantage", 0.0)
    shown = []
    for part in record["tokens"]:
        if isinstance(part, int):
            shown.append(
                f'<div style="border:1px dashed {FAINT};color:{FAINT};margin:3px 0;padding:1px 6px">'
                f"{part} token{'s'[: part > 1]} that it was shown, and did not write</div>"
            )
            continue
        piece, logprob = part
        strength = {"logprob": -logprob / FULL_SURPRISE, "advantage": abs(advantage) / scale, "mask": 1.0}[
            shade
        ]
        ground = (
            UNLIKELY
            if shade == "logprob"
            else TRAINED_UP
            if shade == "mask" or advantage >= 0
            else TRAINED_DOWN
        )
        shown.append(
            f'<span title="p = {math.exp(logprob):.2f}" style="background:{_mixed(ground, strength)};'
            f'border-right:1px solid #dddddd;white-space:pre-wrap">{text(piece)}</span>'
        )
    legend = {
        "logprob": f"darker: less likely when sampled (full at p = {math.exp(-FULL_SURPRISE):.2f})",
        "advantage": f"all tokens are {'strengthened' if advantage > 0 else 'weakened' if advantage < 0 else 'left as they are'}",
        "mask": "blue: the policy's own tokens, all that the loss mask keeps",
    }[shade]
    return f'<div style="margin:4px 0">{"".join(shown)}</div><div style="color:{FAINT};font-size:11px">{legend}</div>'


def _mixed(color: tuple[int, int, int], strength: float) -> str:
    strength = min(max(strength, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in color)


def error(problem: object) -> str:
    """What went wrong, for people."""
    return f'<div style="border-left:4px solid {KINDS["invalid"].color};background:{PAPER};color:{INK};padding:2px 8px">⚠ {text(problem)}</div>'


def documents(
    columns: dict[str, SearchResult], answers: Sequence[str], judged: dict[str, bool] | None = None
) -> str:
    """What several engines found for one query, side by side: each document with the word whether it states one of
    `answers`, and under each column, where asked for, the LLM judge's verdict (name → useful)."""
    cards = []
    for name, result in columns.items():
        if result.status == "failed":
            body = _line("invalid", result.error, "(the search failed)")
        elif not result.documents:
            body = _line("documents", "none")
        else:
            count = sum(scoring.contains(document, answers) for document in result.documents)
            note = f"({count} of {len(result.documents)} state the answer)" if answers else ""
            body = _line("documents", "", note, _listed(result.documents, answers))
        verdict = (
            f"<div>LLM judge: {_verdict(judged[name], 'useful', 'noisy')}</div>"
            if judged and name in judged
            else ""
        )
        cards.append(f'<div style="{CARD.format(width=NARROW)}"><b>{text(name)}</b>{body}{verdict}</div>')
    return f"<div>{''.join(cards)}</div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; wide ones scroll in their own frame."""
    cell = "padding:3px 10px;text-align:left;border-bottom:1px solid #dddddd;vertical-align:top"
    head = "".join(f'<th style="{cell};white-space:nowrap">{text(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{value}</td>' for value in row) + "</tr>" for row in rows
    )
    return (
        f'<div style="overflow-x:auto;max-width:100%;background:{PAPER};color:{INK}"><table style="border-collapse:collapse;font-size:13px;'
        f'color:{INK}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def costs(ways: pd.DataFrame, saved: pd.DataFrame, said: str) -> str:
    """`cost.ways` with `cost.saved` beside it: each way to run a simulator against each engine; `said` stands above."""
    rows = []
    for way, row in ways.iterrows():
        shown = [f"{row['cards']:.0f}", f"{row['usd_hour']:.2f}", f"{row['load']:.0%}", f"{row['usd']:,.2f}"]
        against = [
            f"saves {share:.0%}" if share >= 0 else f"costs {1 - share:.1f} times as much"
            for share in saved.loc[way]
        ]
        rows.append([text(way), *shown, *against])
    columns = [
        "way to run it",
        "cards",
        "$ an hour of one",
        "busy",
        "$ a training",
        *(f"against {one}" for one in saved),
    ]
    return f'<div style="margin-bottom:4px">{text(said)}</div>{table(columns, rows)}'


def board(states: Sequence[ArmState], said: str = "") -> str:
    """Every arm of a study: how its runs stand, how far the unfinished one is, and its last score; `said` stands above."""
    done, wanted = sum(state.done for state in states), sum(state.wanted for state in states)
    rows = []
    for state in states:
        mark = (
            f'<span style="color:{drawing.color_of(state.name)}">■</span> ' if state.kind == "policy" else ""
        )
        at = state.progress
        far = f"{text(at.stage)} {at.step} of {at.steps}" if at else ""
        left = clock(state.seconds_left) if state.seconds_left is not None else ""
        score = f"{text(state.score_name)} {state.score:.2f}" if state.score is not None else ""
        rows.append(
            [
                text(state.kind),
                mark + text(state.name),
                f"{STATES[state.state]} {state.state}",
                f"{state.done}/{state.wanted}",
                far,
                left,
                score,
            ]
        )
    head = f'<div style="margin-bottom:4px"><b>{done} of {wanted} runs finished</b> {text(said)}</div>'
    return head + table(["kind", "arm", "state", "seeds", "progress", "time left", "last score"], rows)


def training(runs: Sequence[Run]) -> str:
    """How trainings go, from what they have logged so far: a line on each, early warnings of collapse, and curves."""
    lines, logs = [], []
    for run in runs:
        log = run.metrics().assign(arm=run.label, seed=run.seed)
        logs.append(log)
        state = progress.run_state(run)
        at, left = run.read_progress(), progress.seconds_left(run) if state == "running" else None
        far = f", step {at.step} of {at.steps}" if at and state != "finished" else f", {len(log)} steps"
        lines.append(
            f'<div><span style="color:{drawing.color_of(run.label)}">■</span> <b>{text(run.label)} s{run.seed}</b>: '
            f"{STATES[state]} {state}{far}{f', about {clock(left)} left' if left is not None else ''} "
            f'<span style="color:{FAINT}">({run.path.name})</span></div>'
        )
        lines += [
            f'<div style="color:{KINDS["invalid"].color}"><b>⚠ {text(warning.name.replace("_", " "))}</b> from step '
            f"{warning.step}: {text(warning.message)}</div>"
            for warning in collapse_warnings(log)
        ]
    logged = pd.concat(logs, ignore_index=True)
    pictures = "".join(
        _picture(figures.draw_panel(logged, column), title)
        for column, title in figures.PANELS.items()
        if column in logged and logged[column].notna().any()
    )
    waiting = "" if pictures else f'<div style="color:{FAINT}">No step is logged yet.</div>'
    return f'<div style="background:{PAPER};color:{INK};font-size:13px">{"".join(lines)}{waiting}<div>{pictures}</div></div>'


def _picture(png: bytes, title: str) -> str:
    return f'<img alt="{text(title)}" src="data:image/png;base64,{b64encode(png).decode()}" style="width:{NARROW};max-width:100%">'
