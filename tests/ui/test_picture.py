"""A trajectory as an SVG: the stored picture is the recorded trajectory's, and is read without a browser."""

import re
import xml.etree.ElementTree as ElementTree

from zs_lib.analysis import figures
from zs_lib.analysis.trajectory_index import load_sample
from zs_lib.ui import picture


def test_the_stored_picture_is_of_the_recorded_trajectories(tmp_path):
    (drawn,) = picture.draw_sample("tiny", tmp_path)
    assert drawn.read_bytes() == (figures.FOLDER / drawn.name).read_bytes()
    assert picture.draw_sample("smoke", tmp_path) == []  # nothing is recorded of it
    words = " ".join(ElementTree.fromstring(drawn.read_text()).itertext())
    first, *_, last = (
        one for one in load_sample("tiny") if one.get("watched") and "Minsk" in one["question"]
    )
    assert f"After RL step {last['step']}" in words and last["answer"] in words and first["answer"] in words


def test_long_and_hostile_texts_stay_in_their_box():
    text = "<think> a & b < c \x1b[31m " + "long " * 40 + "</think><answer> </svg> & </answer>"
    turn = {"text": text, "query": None, "documents": ["Oslo & <b>"]}
    record = {"question": "q?", "answer": "Oslo", "golden_answers": ["Oslo"], "turns": [turn]}
    record |= {"reward": 1.0, "stop_reason": "answer"}
    drawn = ElementTree.fromstring(picture.draw([record, record], ["one", "two"]))
    lines = [element for element in drawn.iter() if element.tag.endswith("}text")]
    assert all(len("".join(line.itertext())) <= picture.LETTERS for line in lines)
    shown = " ".join("".join(line.itertext()) for line in lines)
    assert "a & b < c" in shown and "✔ Oslo & <b>" in shown and shown.count("long") == 80
    heights = [
        float(rect.get("y")) + float(rect.get("height"))
        for rect in drawn.iter()
        if rect.get("y") and rect.get("height")
    ]
    assert max(heights) < float(drawn.get("height")) and re.fullmatch(r"\d+", drawn.get("width"))
