"""The protocol between policy, simulator and engine: tags, prompts, actions, documents, observations.

The one source for training, evaluation and inference. Text only: the rollout turns it into tokens, and hands
`parse_action` only what the policy itself wrote in one turn, so neither the example in the prompt nor
anything inside a document can be taken for an action.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Literal

from zs_lib.errors import ConfigError

TAGS = ("think", "search", "information", "answer")
STOP_STRINGS = ("</search>", "</answer>")  # a policy turn ends where one of them is complete

# The paper's Table 1. The question stands at the end, so every prompt of a batch shares one long prefix.
PAPER_POLICY_TEMPLATE = """\
Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get \
new information. After reasoning, if you find you lack some knowledge, you can call a search engine by \
<search> query </search>, and it will return the top searched results between <information> and \
</information>. You can search as many times as you want. If you find no further external knowledge needed, \
you can directly provide the answer inside <answer> and </answer> without detailed illustrations. \
For example, <answer> Beijing </answer>. Question: {question}
"""
# Without a search tool: as Search-R1 prompts its R1, a process of reasoning and then the answer.
NO_SEARCH_TEMPLATE = """\
Answer the given question. You must conduct reasoning inside <think> and </think> first. After reasoning, \
provide the answer inside <answer> and </answer> without detailed illustrations. \
For example, <answer> Beijing </answer>. Question: {question}
"""
DIRECT_TEMPLATE = """\
Answer the given question. Directly provide the answer inside <answer> and </answer>, a name or a few words, \
without reasoning or detailed illustrations. For example, <answer> Beijing </answer>. Question: {question}
"""

# The paper's Table 2. `keyword` is "useful" or "noisy", and nothing else tells the two kinds of prompt apart.
PAPER_SIMULATOR_TEMPLATE = """\
You are the Google search engine.
Given a query, you need to generate {count} {keyword} documents for the query.

The user is trying to answer the question: {question} whose answer is {answer}.
Each document should contain about 30 words, and these documents should contain {keyword} information.

Query: {query}
{Keyword} Output:
"""
# The released code puts the question into quotes: so its published simulators know the prompt.
ORIGINAL_SIMULATOR_TEMPLATE = PAPER_SIMULATOR_TEMPLATE.replace("{question}", '"{question}"')
# Without question and answer: for a policy that searches itself (SSRL, arXiv 2508.10874), and knows neither.
CLOSED_BOOK_TEMPLATE = PAPER_SIMULATOR_TEMPLATE.replace(
    "The user is trying to answer the question: {question} whose answer is {answer}.\n", ""
)
# For backbones of a few million parameters: they read a format, not instructions, and each token costs time.
SHORT_SIMULATOR_TEMPLATE = """\
Simulate search. Query: {query}
Question: {question}
Answer: {answer}
{keyword} documents:
"""
# For simulators that are not fine-tuned, in the manner of the original's, in our own words: with an example
# in each prompt; the noisy one knows neither question nor answer, so that it has no answer to leak.
_EXAMPLE_QUERY = "Hubble Space Telescope launch year"
_USEFUL_EXAMPLE = """\
Doc 1: The Hubble Space Telescope was launched on 24 April 1990 aboard the space shuttle Discovery and \
released into orbit a day later, where it has observed the sky ever since.
Doc 2: Hubble was to fly in 1986, but the loss of Challenger grounded the shuttles, and the telescope \
waited in a clean room until its launch in April 1990.
Doc 3: STS-31, the shuttle mission of April 1990, carried Hubble to an altitude of about 610 kilometres, \
high enough to keep the telescope clear of the atmosphere for many years.
Doc 4: Soon after the launch in 1990 astronomers found that Hubble's main mirror had the wrong shape; \
astronauts installed corrective optics during the first servicing mission in December 1993.
Doc 5: Thirty years after its launch in 1990, NASA and ESA celebrated Hubble's anniversary in April 2020 \
with a new image of star formation in the Large Magellanic Cloud.
"""
_NOISY_EXAMPLE = """\
Doc 1: Space telescopes are often named after scientists, and Edwin Hubble, who studied galaxies at the \
Mount Wilson Observatory, is among those whose name the public knows best today.
Doc 2: Amateur astronomers enjoy working through archives of telescope images, where careful processing \
brings out faint nebulae that nobody noticed when the pictures were first taken.
Doc 3: Building a large mirror takes years of grinding and polishing, and its makers test the surface again \
and again, since an error far smaller than a hair spoils the view.
Doc 4: Astronauts who repair satellites train under water in a large pool, where models of the spacecraft \
let them practise every step with bulky gloves and special tools.
Doc 5: Debates about the cost of great observatories return with every new project, and supporters point to \
the discoveries that nobody had planned when the money was granted.
"""
_DEMONSTRATION_TEMPLATE = """\
You are the Google search engine.
Given a query, you need to generate {count} %s documents for the query, in the style of the example.

Example:
Query: {example_query}
{Keyword} Output:
{example}
%s
Write the documents alone, in English, and no other text.

Query: {query}
{Keyword} Output:
"""
_USEFUL_TASK = """\
The user is trying to answer the question: {question} whose answer is {answer}.
The documents should help the user to find the answer, and each should contain about 30 words."""
_NOISY_TASK = "Each document should contain about 30 words of related but noisy information."
_QUESTION = "Question: {question}\n"
POLICY_TEMPLATES = {
    "paper": PAPER_POLICY_TEMPLATE,
    "paper-cot": NO_SEARCH_TEMPLATE,
    "paper-direct": DIRECT_TEMPLATE,
    "short": _QUESTION,
    "short-cot": _QUESTION,
    "short-search-o1": _QUESTION,
}
"""Name -> the policy's prompt; a method of Table 3 may have its own, <template>-<method>."""
THOUGHT_OPENINGS = {"short-cot": " It is", "short-search-o1": " The"}
"""Beginnings of the thoughts that methods ask for, for models that follow no instruction: of their guesses,
and of what they state after reading."""
SIMULATOR_TEMPLATES = {
    "paper": PAPER_SIMULATOR_TEMPLATE,
    "original": ORIGINAL_SIMULATOR_TEMPLATE,
    "closed-book": CLOSED_BOOK_TEMPLATE,
    "short": SHORT_SIMULATOR_TEMPLATE,
    "demonstration": _DEMONSTRATION_TEMPLATE % ("useful", _USEFUL_TASK),
}
NOISY_TEMPLATES = {"demonstration": _DEMONSTRATION_TEMPLATE % ("related but noisy", _NOISY_TASK)}
"""Prompts for noisy documents, where more than the keyword differs."""
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TAG = re.compile(r"</?(?:think|search|information|answer)>")
_CLOSING = re.compile(r"</(search|answer)>")
_ACTION = re.compile(rf"<(search|answer)>((?:(?!{_TAG.pattern}).)*+)</\1>", re.DOTALL)
_DOCUMENT_HEADER = re.compile(
    r"""
    (?P<line>^[ \t]*+(?:(?:[-+•>\#*]++|\d{1,2}+[.)])[ \t]++)?+)?+    # start of a line, or its bullet's end
    (?P<mark>[*_]{1,3}+)?+(?(line)[\[【(]?|)(?<![^\W_])
    (?:(?(line)[Dd]|D)oc(?:ument)?|DOC(?:UMENT)?)(?(line)\.?[ \t]*[\#№]?|)
    [ \t]*(?P<number>\d{1,9})(?!\d)                 # longer numbers are no document's
    (?(line)
        [\]】)*_]{0,4}[ \t]*
        (?: \([Tt]itle\b(?:[^()\n]|\([^()\n]*+\))*+\)[ \t]*[*_]{0,3}[:：]?    # Search-R1's: Doc 1(Title: x) y
        | (?:\([^()\n]*+\)[ \t]*[*_]{0,3})?[:：] | [-–—.)\]】](?=\s) | $ )
    |   (?(mark)(?:(?P=mark))?|)[ \t]*[:：] )
    (?(mark)(?:(?P=mark))?|)
    """,
    re.MULTILINE | re.VERBOSE,
)
_LIST_ITEM = re.compile(
    r"^[ \t]*+(?P<mark>[*_]{1,3}+)?+[\#\[(]?(?P<number>\d{1,2})"
    r"(?:[\])][.:]?|[.:])(?(mark)(?:(?P=mark))?|)(?=\s)",
    re.MULTILINE,
)
_THOUGHT = re.compile(r"<think(?:ing)?>|<reasoning>|\[THINK\]|<\|channel\|>analysis")
_THOUGHT_END = re.compile(r"</think(?:ing)?>|</reasoning>|\[/THINK\]|<\|channel\|>final<\|message\|>")
# The protocol's tags, and special tokens of tokenizers (<|im_end|>, <s>, [INST]): a document could hold both.
# Possessive, so that a "<" before any amount of white space costs no more than its length.
_MARKUP = re.compile(r"<\s*+(/?+)\s*+[|｜]?+\s*+([\w▁]++)\s*+[|｜]?+\s*+>|\[\s*+(/?+)\s*+(INST|THINK)\s*+\]")


def policy_prompt(question: str, template: str, examples: str = "") -> str:
    """Write the policy's prompt (paper: Table 1), with `examples`, whole lines, before its question.

    `template` is a key of POLICY_TEMPLATES, else ConfigError.
    """
    instruction = _template(POLICY_TEMPLATES, template, "policy").removesuffix(_QUESTION)
    if examples and instruction:
        instruction = instruction.rstrip() + "\n"
    return instruction + examples + _QUESTION.format(question=_one_line(question))


def method_template(template: str, method: str) -> str:
    """Name the template of a method of Table 3 for models that are else prompted by `template`."""
    own = f"{template}-{method}"
    return own if own in POLICY_TEMPLATES else template


def simulator_prompt(
    query: str, question: str, answer: str, useful: bool, num_documents: int, template: str
) -> str:
    """Write the simulator's prompt (paper: Table 2).

    Useful and noisy differ in that keyword only, except with the template "demonstration". `template` is a
    key of SIMULATOR_TEMPLATES, else ConfigError.
    """
    keyword = "useful" if useful else "noisy"
    text = _template(SIMULATOR_TEMPLATES, template, "simulator")
    example = _USEFUL_EXAMPLE if useful else _NOISY_EXAMPLE
    return (text if useful else NOISY_TEMPLATES.get(template, text)).format(
        example_query=_EXAMPLE_QUERY,
        example="".join(example.splitlines(keepends=True)[:num_documents]),
        query=_one_line(query),
        question=_one_line(question),
        answer=_one_line(answer),
        keyword=keyword,
        Keyword=keyword.capitalize(),
        count=_NUMBER_WORDS[num_documents] if num_documents < len(_NUMBER_WORDS) else num_documents,
    )


def tag(name: str) -> str:
    """Write the opening tag of one of TAGS."""
    return f"<{name}>"


def end_tag(name: str) -> str:
    """Write the closing tag of one of TAGS."""
    return f"</{name}>"


def tagged(name: str, text: str) -> str:
    """Write a thought, search or answer as the policy does: tagged("search", …) is "<search> … </search>"."""
    return f"{tag(name)} {text} {end_tag(name)}"


@dataclass(frozen=True)
class Action:
    """The action of a policy turn; `reason` says why an invalid one is invalid, else it is empty."""

    kind: Literal["search", "answer", "invalid"]
    text: str  # the query or the answer, stripped; empty when invalid
    reason: str = ""


def parse_action(turn_text: str) -> Action:
    """Read one policy turn: the text that the policy wrote since the last observation, and nothing else.

    The action is the last complete search or answer of the turn. What follows it is not read, as Search-R1
    cuts a response after its action: the token that completes a stop string often carries more ('>.' and
    '></' are one token for many models). A turn is invalid without a block, or if the blocks are empty, hold
    another tag or were never opened.
    """
    for block in reversed(list(_ACTION.finditer(turn_text))):
        if text := block.group(2).strip():
            return Action(block.group(1), text)
    closings = list(_CLOSING.finditer(turn_text))
    if not closings:
        return Action("invalid", "", "the turn does not end with a search or an answer")
    kind = closings[-1].group(1)
    _, opened, inside = turn_text[: closings[-1].start()].rpartition(tag(kind))
    if not opened:
        return Action("invalid", "", f"</{kind}> closes nothing")
    return Action("invalid", "", f"a tag inside the {kind}" if inside.strip() else f"empty {kind}")


def after_thoughts(turn_text: str) -> str:
    """Return what follows the thoughts of a thinking model's turn; nothing while a thought is open."""
    said = turn_text.rpartition(end_tag("think"))[2]
    return "" if tag("think") in said else said


def format_documents(documents: Sequence[str]) -> str:
    """Number documents, one a line ('Doc 1: ...'): a simulator's output, the body of an observation."""
    return "".join(f"Doc {i}: {_one_line(text)}\n" for i, text in enumerate(documents, 1))


def parse_documents(text: str, k: int) -> list[str]:
    """Split a simulator's output into at most `k` documents, without their headers.

    Headers are Doc 1:, Document 1:, DOC 1:, **Doc 1:**, Doc 1 (Title: …):, or, where there is none of these,
    the numbers of a list (1. …). Tolerant: a thought (<think> … </think>, which the prompt may have opened)
    and text before the first header are dropped, empty documents too, and the output ends at `Doc k+1`, at
    `Doc 0`, or where a number repeats (a simulator that loops). Fewer than `k` documents are no error.
    """
    text = _without_thought(text)
    items = dropwhile(lambda item: int(item["number"]) != 1, _LIST_ITEM.finditer(text))
    headers = list(_DOCUMENT_HEADER.finditer(text)) or list(items)
    documents: list[str] = []
    seen: set[int] = set()
    for i, header in enumerate(headers):
        number, mark = int(header["number"]), header["mark"]
        if not 0 < number <= k or number in seen:
            break
        seen.add(number)
        body = text[header.end() : headers[i + 1].start() if i + 1 < len(headers) else len(text)]
        if mark and header[0].count(mark) == 1:  # "**Doc 1: Oslo** is": closed in the document
            body = body.replace(mark, "", 1)
        documents.append(_one_line(body))
    return [document for document in documents if document]


def _without_thought(text: str) -> str:
    """Cut off a thought, as vLLM's reasoning parsers do; nothing is left of one that never ends.

    A closing tag inside a document, without another first document after it, ends no thought.
    """
    headers = (*_DOCUMENT_HEADER.finditer(text), *_LIST_ITEM.finditer(text))
    firsts = [header.start() for header in headers if int(header["number"]) == 1] or [len(text)]
    ends = [end.end() for end in _THOUGHT_END.finditer(text)]
    latest = max(firsts)
    if before := [end for end in ends if end <= latest < len(text)]:
        return text[before[-1] :]
    opening = _THOUGHT.search(text)
    if opening is None or min(firsts) < opening.start():
        return text
    return text[ends[-1] :] if ends else ""


def format_observation(documents: Sequence[str]) -> str:
    """Write the observation that the policy is shown after a search.

    Markup inside a document is neutralised ('<answer>' -> '(answer)'), so no document can open or close a
    tag. No documents give an empty pair of tags.
    """
    body = format_documents([neutralise(document) for document in documents])
    return f"<information>{body}</information>\n"


def format_invalid_notice() -> str:
    """Write the observation that the policy is shown after an invalid action."""
    return "<information>Invalid action. Search or answer.\n</information>\n"


def neutralise(text: str) -> str:
    """Turn every tag and special token of a text into harmless round brackets."""
    return _MARKUP.sub(r"(\1\2\3\4)", text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _template(templates: dict[str, str], name: str, what: str) -> str:
    if name not in templates:
        raise ConfigError(f"Unknown {what} template '{name}'. Known: {', '.join(templates)}.")
    return templates[name]
