"""Questions, passages and the scoring of answers."""

from zs_lib.qa.forms import Columns
from zs_lib.qa.questions import (
    SUBSETS,
    TRAINED_ON,
    Hop,
    Passage,
    Question,
    load_benchmark,
    load_passages,
    load_questions,
    read_corpus,
)
