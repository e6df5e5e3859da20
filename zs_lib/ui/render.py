"""Render trajectories, documents, the state of a study and training curves as self-contained HTML.

JupyterLab, papermill's output, nbviewer and GitHub show the same HTML: it has inline styles (and one sheet,
for curves in the dark theme), no script, and loads nothing. Text of models and documents is escaped and shown
as it is: tags, control characters, and what MathJax would typeset.
"""

from __future__ import annotations

import html
import json
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import pandas as pd

from zs_lib.analysis import drawing, figures
from zs_lib.analysis.collapse import collapse_warnings
from zs_lib.config.values import pick
from zs_lib.engines import SearchResult
from zs_lib.launch import progress
from zs_lib.launch.progress import ArmState, clock
from zs_lib.qa import scoring
from zs_lib.runs import Run
from zs_lib.ui.terminal import visible
from zs_lib.ui.theme import (
    CARD,
    DARK_PICTURES,
    FAINT,
    GRID,
    KINDS,
    LIGHT_PICTURE,
    SHADE_SHARE,
    SHEET,
    TOKEN_EDGE,
    TRAINED_DOWN,
    TRAINED_UP,
    UNLIKELY,
    edge,
    ground,
    rule,
    word,
)

SHADES = {"": "kinds", "logprob": "log-probability", "advantage": "advantage", "mask": "loss mask"}
"""Quantity to shade tokens by → its name in the explorer."""
STOPS = {
    "answer": "it answered",
    "max_turns": "it searched again in its last turn",
    "length": "no room for another turn",
    "invalid": "no search or answer in its last turn",
    "engine_failed": "the search engine failed",
}
STATE_MARKS = {"finished": "✔", "running": "▶", "unfinished": "◐", "missing": "○", "damaged": "✘"}
CURVE, WIDE = "420px", "760px"
"""Widths of a curve, and of a trajectory alone, at most."""
FULL_SURPRISE = 3.0
"""Nats at which a token is shaded at full strength."""
_BLOCK = re.compile(r"<(think|search|answer)>(.*?)</\1>", re.DOTALL)
_MATH = re.compile(r"[$\\]")


def text(value: object) -> str:
    """Escape a value as HTML text that no viewer interprets.

    Control characters become visible. Each $ and backslash is an element of its own, across which MathJax
    finds no formula.
    """
    return _MATH.sub(lambda found: f"<span>{found.group()}</span>", html.escape(visible(str(value))))


def trajectory(record: dict, title: str = "", shade: str = "", simulated: bool = False) -> str:
    """Render a record of `rl.trajectory.to_record` turn by turn, with its reward and the reason for it.

    `shade`: a key of SHADES, to shade single tokens. `simulated`: whether requests were for useful or noisy
    documents, which is then shown.

    Raises:
        ConfigError: there is no such shade.
    """
    scale = max(map(abs, _advantages(record))) or 1.0
    card = _card(f"{title} {record['question']}", record, shade, simulated, scale)
    return f'<div style="max-width:{WIDE}">{card}</div>'


def group(
    records: Sequence[dict],
    shade: str = "",
    simulated: bool = False,
    titles: Sequence[str] = (),
    feet: Sequence[str] = (),
) -> str:
    """Render trajectories side by side (on a phone: one below the other), with titles or numbers.

    `feet`: HTML at the end of each.
    """
    titles = titles or [f"rollout {number}" for number in range(1, len(records) + 1)]
    scale = max((abs(a) for record in records for a in _advantages(record)), default=0) or 1.0
    cards = (
        _card(title, record, shade, simulated, scale, foot)
        for record, title, foot in zip(records, titles, feet or [""] * len(records), strict=True)
    )
    questions = "<br>".join(dict.fromkeys(text(record["question"]) for record in records))
    head = f'<div style="margin-bottom:4px;line-height:1.4"><b>{questions}</b></div>'
    return f"<div>{head}{_grid(cards)}</div>"


def beside(parts: dict[str, str]) -> str:
    """Put pages beside each other; `parts`: heading → page."""
    columns = (
        f'<div style="flex:1 1 0;min-width:0;line-height:1.4"><div><b>{text(head)}</b></div>{page}</div>'
        for head, page in parts.items()
    )
    return f'<div style="display:flex;gap:14px">{"".join(columns)}</div>'


def save_links(record: dict, address: str) -> str:
    """Links that save a trajectory as HTML and as JSON, without a server; its address is the files' name."""
    title = html.escape(address)
    page = (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<body style="font-family:sans-serif">{trajectory(record)}<p>{text(address)}</p></body></html>'
    )
    files = {
        "HTML": ("text/html", page),
        "JSON": ("application/json", json.dumps(record, ensure_ascii=False, indent=1)),
    }
    links = (
        f'<a style="color:inherit;text-decoration:underline" download="{title}.{name.lower()}" '
        f'href="data:{kind};base64,{b64encode(file.encode(errors="replace")).decode()}">{name}</a>'
        for name, (kind, file) in files.items()
    )
    return f'<div style="{FAINT};font-size:11px">{text(address)} save: {", ".join(links)}</div>'


def _titled(title: str, body: str, style: str = "") -> str:
    """A card of HTML under its title."""
    return f'<div style="{CARD}{style}"><b>{text(title)}</b>{body}</div>'


def _grid(cards: Iterable[str]) -> str:
    return f'<div style="{GRID}">{"".join(cards)}</div>'


def _card(title: str, record: dict, shade: str, simulated: bool, scale: float, foot: str = "") -> str:
    """One trajectory; `scale` is the advantage at which tokens are shaded at full strength."""
    pick("shade", shade, SHADES)
    if shade:
        body = _tokens(record, shade, scale)
    else:
        body = "".join(_turn(turn, record, simulated) for turn in record["turns"])
    return _titled(title, f"{body}{_outcome(record)}{foot}")


def _advantages(record: dict) -> list[float]:
    """The advantages of a trajectory's turns, or the one of them all."""
    return record.get("turn_advantages") or [record.get("advantage", 0.0)]


def why(record: dict) -> str:
    """Explain a reward in one sentence: the prediction against the nearest golden answer."""
    prediction, golden = record["answer"], record["golden_answers"]
    if not golden:
        return f"no right answer is known; the policy's is “{prediction}”" if prediction else "no answer"
    expected = f"right: {' or '.join(golden[:3])}{' …' if len(golden) > 3 else ''}"
    if record["stop_reason"] == "engine_failed":
        errors = [turn["error"] for turn in record["turns"] if turn["error"]]
        return f"left out of the training: {errors[-1] if errors else 'a search failed'}"
    if prediction is None:
        return f"no answer; {expected}"
    nearest = max(golden, key=lambda answer: scoring.f1(prediction, [answer]))
    predicted, right = (Counter(scoring.normalize_answer(answer).split()) for answer in (prediction, nearest))
    if predicted == right:
        return f"“{prediction}” is right"
    shared = (predicted & right).total()
    if not shared:
        return f"“{prediction}” has no word of it; {expected}"
    words = f"{shared} word{'s' if shared > 1 else ''} (of its {predicted.total()})"
    return f"“{prediction}” shares {words} with “{nearest}” (of {right.total()})"


def _outcome(record: dict) -> str:
    reward, advantage = record["reward"], record.get("advantage")
    shown = "no reward" if reward is None else f"reward {reward:.2f}"
    parts = [
        f"<b>{shown}</b>: {text(why(record))}",
        f"stop: {text(STOPS.get(record['stop_reason'], record['stop_reason']))}",
    ]
    if advantage is not None:
        by_turn = ", ".join(f"{each:+.2f}" for each in record.get("turn_advantages", ()))
        parts.append(f"advantages of the turns {by_turn}" if by_turn else f"advantage {advantage:+.2f}")
    return f'<div style="margin-top:6px;{rule("border-top")};padding-top:4px">{"<br>".join(parts)}</div>'


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
        lines.append(_observation(turn, record, simulated))
    return "".join(lines)


def _observation(turn: dict, record: dict, simulated: bool) -> str:
    if turn["status"] == "failed":
        return _line("invalid", turn["error"], "(the search failed)")
    note = f"({'noisy' if turn['noisy'] else 'useful'} asked for)" if simulated else ""
    if not turn["documents"]:
        return _line("documents", "none", note)
    return _line("documents", "", note, _listed(turn["documents"], record["golden_answers"]))


def _line(kind: str, content: str, note: str = "", body: str = "") -> str:
    name, color = KINDS[kind]
    style = f"{edge(color)};{ground(color)};margin:3px 0;padding:2px 8px;white-space:pre-wrap"
    note = f' <span style="{FAINT}">{text(note)}</span>' if note else ""
    return f'<div style="{style}"><b style="{word(color)}">{name}</b>{note} {text(content)}{body}</div>'


def _listed(documents: Iterable[str], answers: Sequence[str]) -> str:
    """Documents one below the other, each marked with whether it states one of the answers, if known."""
    lines = []
    for document in documents:
        states = scoring.contains(document, answers)
        verdict = _verdict(states, "states the answer", "no answer") if answers else "–"
        lines.append(f'<div style="margin-top:2px">{verdict} {text(document)}</div>')
    return "".join(lines)


def _verdict(holds: bool, yes: str, no: str) -> str:
    color = word(KINDS["documents"][1]) if holds else FAINT
    return f'<span style="{color};font-size:11px">[{"✔ " + yes if holds else "– " + no}]</span>'


def _tokens(record: dict, shade: str, scale: float) -> str:
    """The token stream as trained: the policy's tokens shaded, runs of observation tokens as their number."""
    if "tokens" not in record:
        message = "This run was logged without its tokens: they cannot be shaded."
        return f'<div style="{FAINT};margin:4px 0">{message}</div>'
    first, *later = _advantages(record)
    advantage, shown = first, []
    for part in record["tokens"]:
        if isinstance(part, int):
            advantage = later.pop(0) if later else advantage
            shown.append(
                f'<div style="border:1px dashed;{FAINT};margin:3px 0;padding:1px 6px">'
                f"{part} observation token{'s' if part > 1 else ''}, not written by the policy</div>"
            )
        else:
            piece, logprob = part
            shaded = ground(*_shaded(shade, logprob, advantage, scale))
            told = f"p = {math.exp(logprob):.2g}, log p = {logprob:z.2f}"
            shown.append(
                f'<span title="{told}" style="{shaded};{TOKEN_EDGE};'
                f'white-space:pre-wrap">{text(piece)}</span>'
            )
    direction = "strengthened" if first > 0 else "weakened" if first < 0 else "left as they are"
    told = (
        f"all tokens are {direction}" if len(_advantages(record)) == 1 else "each turn by its own advantage"
    )
    legend = {
        "logprob": f"the stronger, the less likely when sampled (full at p = {math.exp(-FULL_SURPRISE):.2f})",
        "advantage": told,
        "mask": "blue: the policy's own tokens, all that the loss mask keeps",
    }[shade]
    return (
        f'<div style="margin:4px 0">{"".join(shown)}</div><div style="{FAINT};font-size:11px">{legend}</div>'
    )


def _shaded(shade: str, logprob: float, advantage: float, scale: float) -> tuple[str, float]:
    """Colour of one of the policy's tokens, and its share in percent."""
    if shade == "logprob":
        color, strength = UNLIKELY, -logprob / FULL_SURPRISE
    elif shade == "advantage":
        color, strength = TRAINED_UP if advantage >= 0 else TRAINED_DOWN, abs(advantage) / scale
    else:
        color, strength = TRAINED_UP, 1.0
    return color, SHADE_SHARE * min(max(strength, 0.0), 1.0)


def stream(tokens: Iterable[tuple[str, bool]], title: str = "") -> str:
    """Render every token of a text, with whether it is trained: those on blue, the others in grey."""
    grounds = {True: ground(TRAINED_UP, SHADE_SHARE), False: FAINT}
    runs = (
        f'<span style="{grounds[trained]}">'
        + "".join(f'<span style="{TOKEN_EDGE}">{text(piece)}</span>' for piece, _ in part)
        + "</span>"
        for trained, part in groupby(tokens, key=lambda token: bool(token[1]))
    )
    head = title and f"<b>{text(title)}</b>\n"
    return f'<div style="{CARD};max-width:{WIDE};white-space:pre-wrap">{head}{"".join(runs)}</div>'


def texts(columns: Mapping[str, str]) -> str:
    """Render texts side by side, by title, as they are: prompts, for example."""
    return _grid(
        _titled(title, f"\n{text(body)}", ";white-space:pre-wrap") for title, body in columns.items()
    )


def error(problem: object) -> str:
    """Render an error message."""
    return _line_above("invalid", f"⚠ {problem}")


def note(said: object) -> str:
    """Render a line about what is shown."""
    return _line_above("search", said)


def _line_above(kind: str, said: object) -> str:
    style = f"{edge(KINDS[kind][1])};{SHEET}"
    return f'<div style="{style};padding:3px 8px;margin:2px 0;line-height:1.4">{text(said)}</div>'


def documents(
    columns: dict[str, SearchResult], answers: Sequence[str], judged: dict[str, bool] | None = None
) -> str:
    """Render what several engines found for one query side by side; `columns`: engine → its result.

    Each document is marked with whether it states one of `answers`. `judged`: the LLM judge's verdict on each
    engine's documents (name → useful), shown below them.
    """
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
        verdict = ""
        if judged and name in judged:
            verdict = f"<div>LLM judge: {_verdict(judged[name], 'useful', 'noisy')}</div>"
        cards.append(_titled(name, body + verdict))
    return _grid(cards)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table whose cells are HTML; a wide one scrolls in its own frame."""
    cell = f"padding:3px 10px;text-align:left;vertical-align:top;{rule('border-bottom')}"
    head = "".join(f'<th style="{cell};white-space:nowrap">{text(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{value}</td>' for value in row) + "</tr>" for row in rows
    )
    return (
        f'<div style="overflow-x:auto;max-width:100%;contain:inline-size;{SHEET}">'
        f'<table style="border-collapse:collapse;font-size:13px;line-height:1.4">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def costs(ways: pd.DataFrame, saved: pd.DataFrame, caption: str) -> str:
    """Render `cost.ways` beside `cost.savings`: each way to run a simulator against each search engine."""
    rows = []
    for way, row in ways.iterrows():
        cells = [f"{row['cards']:.0f}", f"{row['usd_hour']:.2f}", f"{row['load']:.0%}", f"{row['usd']:,.2f}"]
        for share in saved.loc[way]:
            cells.append(f"saves {share:.0%}" if share >= 0 else f"costs {1 - share:.1f} times as much")
        rows.append([text(way), *cells])
    columns = ["way to run it", "GPUs", "$ per GPU hour", "busy", "$ per training run"]
    columns += [f"against {engine}" for engine in saved]
    return f'<div style="margin-bottom:4px;line-height:1.4">{text(caption)}</div>{table(columns, rows)}'


def board(states: Sequence[ArmState], note: str = "") -> str:
    """Render the state of every arm: finished runs, progress, time left, last score; `note` is on top."""
    done, wanted = sum(state.done for state in states), sum(state.wanted for state in states)
    begun = [state.progress for state in states if state.progress]
    part = done + sum(at.step / max(at.steps, 1) for at in begun)
    bar = f"{rule('border')};height:8px;max-width:600px;border-radius:4px;overflow:hidden;margin:4px 0 6px"
    fill = f"height:100%;width:{100 * part / max(wanted, 1):.1f}%;background:{KINDS['documents'][1]}"
    head = (
        f'<div style="line-height:1.4"><b>{done} of {wanted} runs finished</b> {text(note)}</div>'
        f'<div style="{bar}"><div style="{fill}"></div></div>'
    )
    columns = ["kind", "arm", "state", "seeds", "progress", "time left", "last score"]
    return head + table(columns, map(_board_row, states))


def _board_row(state: ArmState) -> list[str]:
    mark = _square(state.name) if state.kind == "policy" else ""
    step = state.progress
    return [
        text(state.kind),
        mark + text(state.name),
        f"{STATE_MARKS[state.state]} {state.state}",
        f"{state.done}/{state.wanted}",
        f"{text(step.stage)} {step.step} of {step.steps}" if step else "",
        clock(state.seconds_left) if state.seconds_left is not None else "",
        f"{text(state.score_name)} {state.score:.2f}" if state.score is not None else "",
    ]


def training(runs: Sequence[Run]) -> str:
    """Render the logs of training runs so far: a line for each, early warnings of collapse, and curves."""
    logs = [run.metrics().assign(arm=run.label, seed=run.seed) for run in runs]
    lines = [line for run, log in zip(runs, logs, strict=True) for line in _training_lines(run, log)]
    logged = pd.concat(logs, ignore_index=True)
    curves = [
        _picture(figures.draw_panel(logged, column), title)
        for column, title in figures.PANELS.items()
        if column in logged and logged[column].notna().any()
    ]
    waiting = "" if curves else f'<div style="{FAINT}">No step is logged yet.</div>'
    style = f"{SHEET};font-size:13px;line-height:1.4"
    return f'{DARK_PICTURES}<div style="{style}">{"".join(lines)}{waiting}{_grid(curves)}</div>'


def _training_lines(run: Run, log: pd.DataFrame) -> list[str]:
    state, at = progress.run_state(run), progress.read_progress(run)
    left = progress.seconds_left(run) if state == "running" else None
    steps = f"step {at.step} of {at.steps}" if at and state != "finished" else f"{len(log)} steps"
    about = f", about {clock(left)} left" if left is not None else ""
    lines = [
        f"<div>{_square(run.label)}<b>{text(run.label)}@{run.seed}</b>: {STATE_MARKS[state]} {state}, "
        f'{steps}{about} <span style="{FAINT}">({run.path.name})</span></div>'
    ]
    alarm = word(KINDS["invalid"][1])
    for warning in collapse_warnings(log):
        lines.append(
            f'<div style="{alarm}"><b>⚠ {text(warning.name.replace("_", " "))}</b> '
            f"from step {warning.step}: {text(warning.message)}</div>"
        )
    return lines


def _square(arm: str) -> str:
    """A square in an arm's colour."""
    return f'<span style="color:{drawing.color_of(arm)}">■</span> '


def _picture(png: bytes, title: str) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    style = f"width:100%;max-width:{CURVE}"
    return f'<img class="{LIGHT_PICTURE}" alt="{text(title)}" src="{source}" style="{style}">'
