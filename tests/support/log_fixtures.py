"""Runs with logged trajectories, as widgets and pages show them."""

from html.parser import HTMLParser

from zs_lib import config

SMOKE = config.load_profile("smoke")


ARM = SMOKE.policy("zerosearch")


HOSTILE = (
    '<script>alert(1)</script><img src="http://a/b" onerror=x> $e=mc^2$ \\(x\\) \x1b[31mred\u202e "quoted\''
)


def turn(text, kind, said, **more) -> dict:
    return {
        "text": text,
        "action": {"kind": kind, "text": said, "reason": ""},
        "query": None,
        "documents": [],
        "noisy": False,
        "status": "",
        "error": "",
    } | more


def record(
    answer="Oslo",
    reward=1.0,
    noisy=False,
    tokens=True,
    question="q?",
    documents=("It is Oslo.", "Not so."),
    **more,
) -> dict:
    searching = turn(
        "<think> hm </think><search> what </search>",
        "search",
        "what",
        query="what",
        documents=list(documents),
        noisy=noisy,
        status="ok",
    )
    shown = (
        {
            "tokens": [["<search>", -0.1], [" what", -2.0], 7, ["<answer>", 0.0]],
            "advantage": reward - 0.5,
            "group": 0,
        }
        if tokens
        else {}
    )
    return (
        {
            "question": question,
            "golden_answers": ["Oslo", "Christiania"],
            "turns": [searching, turn(f"<answer> {answer} </answer>", "answer", answer)],
            "stop_reason": "answer",
            "answer": answer,
            "reward": reward,
        }
        | shown
        | more
    )


def log(run, steps, first=1, **more) -> None:
    """Steps with two groups of two rollouts each."""
    for step in range(first, first + steps):
        run.log(step, reward=0.5, turns=2.0, query_quality=0.5, noise_probability=0.1, entropy=0.3, kl=0.1)
        run.log_timing(step, rollout=2.0, update=1.0)
        run.log_trajectories(
            step,
            [
                record(reward=reward, noisy=bool(reward), question=f"q{group} of {step}?", **more)
                for group in (0, 1)
                for reward in (0.0, 1.0)
            ],
        )


def finished(store, seed=0, steps=3, **more):
    def work(run):
        log(run, steps, **more)
        return {"last_reward": 0.5}

    return store.complete(ARM, seed, work)


def unfinished(store, seed=0, steps=3, **more):
    """As `finished`, but not yet: its log may be written."""
    run = finished(store, seed, steps, **more)
    for name in ("summary.json", "sha256.json"):
        (run.path / name).unlink()
    return run


class Tags(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)
