"""The backbones: copying wired at the start, a loop that learns and resumes, and the folders that are
shipped."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from benchmark_fixtures import tokenizer, world
from safetensors.torch import load_file

from zs_lib import protocol
from zs_lib.config.paths import BACKBONES
from zs_lib.errors import ModelError, RunError
from zs_lib.models.load import load_model
from zs_lib.runs import checkpoints
from zs_lib.tools.backbones import build
from zs_lib.tools.backbones.build import RECIPES, Recipe, batches, encode, loss_of, pretrain, probe
from zs_lib.tools.backbones.induction_init import CONTEXT, Shape, grow, initialise
from zs_lib.tools.backbones.pretraining import BASE, Sampler

SMALL = Recipe(
    Shape(width=32, layers=2, heads=4),
    tokens=20_000,
    shares=(("reading", 0.7), ("recall", 0.3)),
    batch_tokens=512,
    learning_rate=0.02,
)
SHIPPED = [f"tiny-{size}{kind}" for size in RECIPES for kind in ("", "-instruct")]
MEBIBYTES = 40
torch.set_num_threads(1)  # models this small only lose by sharing their work


def small_model():
    tok = tokenizer()
    return initialise(SMALL.shape, len(tok), tok.pad_token_id, tok.eos_token_id)


def test_tags_and_the_end_are_single_tokens():
    tok = tokenizer()
    for name in protocol.TAGS:
        for tag in (f"<{name}>", f"</{name}>"):
            assert len(tok.encode(tag, add_special_tokens=False)) == 1
    assert tok.encode("<|end|>", add_special_tokens=False) == [tok.eos_token_id]
    words = {word for entity in world().entities.values() for word in entity.name.split() if word.isalpha()}
    assert all(len(tok.encode(f" {word}", add_special_tokens=False)) == 1 for word in words)
    odd = "Łódź – 東京 <think> naïve\n\n  x</answer> \t🙂"
    assert tok.decode(tok.encode(odd, add_special_tokens=False)) == odd


@pytest.mark.parametrize("seed", [0, 1])
def test_the_look_up_head_finds_the_earlier_copy_before_any_training(seed):
    shape, length, size = RECIPES["S"][0].shape, 60, len(tokenizer())
    model = initialise(shape, size, 1, 0, seed)
    model.set_attn_implementation("eager")
    half = torch.randperm(size - 400, generator=torch.Generator().manual_seed(seed))[:length] + 300
    ids = torch.cat([half, half])[None]
    with torch.inference_mode():
        output = model(ids, output_attentions=True)
    rows = torch.arange(length, 2 * length - 1)
    on_target = output.attentions[1][
        0, 0, rows, rows - length + 1
    ]  # what followed the earlier copy of this token
    assert on_target.mean() > 0.5
    copied = (output.logits[0, rows].argmax(-1) == ids[0, rows + 1]).float().mean()
    assert copied > 0.2  # chance: one in thousands; the rest of the network is still noise


@pytest.mark.parametrize("size", ["M", "L"])
def test_a_grown_model_computes_what_the_small_one_did_and_can_learn_more(size):
    small = initialise(RECIPES["S"][0].shape, len(tokenizer()), 1, 0)
    with torch.no_grad():
        for parameter in small.parameters():  # as after some training: nothing is zero any more
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    large = grow(small, RECIPES[size][0].shape)
    ids = torch.randint(0, 6000, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(large(ids).logits, small(ids).logits, atol=0.02)
    trainer, width = build.Trainer(large, RECIPES[size][0]), small.config.hidden_size
    for _ in range(
        2
    ):  # the new heads write after the first step, so the new dimensions are moved by the second
        trainer.update(ids, torch.ones(2, 40))
    assert large.model.layers[0].self_attn.o_proj.weight[:, width:].abs().max() > 0
    assert large.model.embed_tokens.weight[:, width:].abs().max() > 0
    with pytest.raises(ModelError, match="heads"):
        grow(small, SMALL.shape)


def test_rare_words_stay_apart_while_frequent_ones_are_learnt():
    model, vocabulary = small_model(), len(tokenizer())
    trainer = build.Trainer(model, replace(SMALL, tokens=10**6))
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):  # text of forty words; thousands are never seen
        ids = torch.randint(10, 50, (8, 40), generator=generator)
        trainer.update(ids, torch.ones(8, 40))
    rare = torch.nn.functional.normalize(model.model.embed_tokens.weight[vocabulary // 2 :].detach(), dim=1)
    assert rare.mean(0).norm() < 0.5  # 1: they all point the same way, as Adam would have it


def test_encode_keeps_ids_and_weights_together():
    ids, weights = encode(tokenizer(), [("Question: who?\n", 0.0), (" Paris", 1.0), ("<|end|>", 0.5)])
    assert len(ids) == len(weights) and weights[-1] == 0.5 and ids[-1] == tokenizer().eos_token_id
    assert [tokenizer().decode([i]) for i, weight in zip(ids, weights, strict=True) if weight == 1.0] == [
        " Paris"
    ]
    assert len(encode(tokenizer(), [("word " * 3000, 1.0)])[0]) == CONTEXT


def test_batches_are_padded_within_the_token_budget():
    sampler = Sampler(world(), 0, BASE, {"reading": 1.0})
    stream = batches(sampler, tokenizer(), 2048)
    for _ in range(5):
        ids, weights = next(stream)
        assert ids.shape == weights.shape and ids.dtype == torch.int64 and weights.dtype == torch.float32
        assert ids.numel() <= 2048 or len(ids) == 1
        assert not weights[ids == tokenizer().pad_token_id].any() and (weights.sum(dim=1) > 0).all()


def test_the_loss_is_the_weighted_mean_over_weighted_tokens():
    model = small_model()
    ids = torch.randint(10, 4000, (2, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(2, 9)
    weights[0, 3], weights[1, 8] = 1.0, 0.25
    logs = torch.log_softmax(model(ids).logits.float(), dim=-1)
    by_hand = -(1.0 * logs[0, 2, ids[0, 3]] + 0.25 * logs[1, 7, ids[1, 8]]) / 1.25
    assert loss_of(model, ids, weights).item() == pytest.approx(by_hand.item(), rel=0.02)  # bfloat16 inside
    changed = ids.clone()
    changed[1, 0] += 1
    weights[1] = 0.0
    assert loss_of(model, ids, weights).item() == loss_of(model, changed, weights).item()


def test_pretraining_learns_and_a_resumed_run_goes_on_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "probe", lambda *_: {"one_hop": 0.0, "chain": 0.0})
    monkeypatch.setattr(build, "islice", lambda stream, _: [next(stream) for _ in range(48)])
    seen = []
    update = build.Trainer.update

    def watched(self, ids, weights):
        loss = update(self, ids, weights)
        seen.append((self.seen, self.step, loss))
        return loss

    monkeypatch.setattr(build.Trainer, "update", watched)
    model = small_model()
    trainer = build.Trainer(model, SMALL)
    stream = batches(Sampler(world(), 1, BASE, dict(SMALL.shares)), tokenizer(), SMALL.batch_tokens)
    while trainer.seen < SMALL.tokens // 2:
        trainer.update(*next(stream))
    checkpoints.save_checkpoint(tmp_path / "x", build._checkpoint(trainer, 7.0))
    half = seen[-1]
    fresh = small_model()
    seconds = pretrain(fresh, tokenizer(), SMALL, world(), tmp_path, "x")
    resumed = seen[len(seen) - (seen[-1][1] - half[1]) :]
    assert resumed[0][1] == half[1] + 1 and half[0] < resumed[0][0] <= half[0] + SMALL.batch_tokens
    assert seen[-1][0] >= SMALL.tokens and seconds >= 7.0
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[-1])["tokens"] == seen[-1][0]
    first, last = [loss for *_, loss in seen[:3]], [loss for *_, loss in seen[-3:]]
    assert sum(last) < 0.9 * sum(first)


def test_a_stopped_pre_training_goes_on_bit_for_bit_and_a_damaged_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "probe", lambda *_: {"one_hop": 0.0, "chain": 0.0})
    monkeypatch.setattr(
        build, "islice", lambda stream, _: [next(stream) for _ in range(16)]
    )  # several buffers of examples
    update = build.Trainer.update

    def stopped_after_ten(self, ids, weights):
        if self.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, ids, weights)

    def trained(folder):
        model = small_model()
        folder.mkdir(exist_ok=True)
        pretrain(model, tokenizer(), replace(SMALL, tokens=8_000), world(), folder, "x")
        return model

    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(build.Trainer, "update", stopped_after_ten)
        trained(tmp_path / "stopped")
    content = (checkpoint := tmp_path / "stopped" / "x" / checkpoints.TENSORS).read_bytes()
    for damaged in (content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], content[:100]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(RunError, match="x/tensors.safetensors is damaged .*begins again"):
            trained(tmp_path / "stopped")
    checkpoint.write_bytes(content)
    resumed = trained(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_build_grows_the_sizes_from_one_trunk_and_a_second_call_only_ships(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "probe", lambda *_: {"one_hop": 0.0, "chain": 0.0})
    monkeypatch.setattr(build, "islice", lambda stream, _: [next(stream) for _ in range(16)])
    monkeypatch.setattr(build, "TRUNK", replace(SMALL, tokens=1_000, decay=0.0))
    monkeypatch.setattr(
        build,
        "RECIPES",
        {
            "S": (replace(SMALL, tokens=1_000), replace(SMALL, tokens=800)),
            "M": (replace(SMALL, tokens=1_000, shape=Shape(width=48, layers=2, heads=6)),),
        },
    )
    monkeypatch.setattr(build, "INSTRUCT_TOKENS", 600)
    build.build_backbones(("S", "M"), tmp_path)
    made = {path.parent.name: load_file(path) for path in tmp_path.glob("tiny-*/model.safetensors")}
    assert set(made) == {"tiny-S", "tiny-S-instruct", "tiny-M", "tiny-M-instruct"}
    assert made["tiny-M"]["model.embed_tokens.weight"].shape[1] == 48
    assert not torch.equal(made["tiny-S"]["model.norm.weight"], made["tiny-S-instruct"]["model.norm.weight"])
    cost = json.loads((tmp_path / "tiny-M-instruct" / "build.json").read_text())
    assert cost["cpu_seconds"] >= json.loads((tmp_path / "tiny-M" / "build.json").read_text())["cpu_seconds"]
    monkeypatch.setattr(build.Trainer, "update", lambda *_: pytest.fail("trained again"))
    build.build_backbones(("S", "M"), tmp_path)
    again = {path.parent.name: load_file(path) for path in tmp_path.glob("tiny-*/model.safetensors")}
    assert all(torch.equal(made[name][key], again[name][key]) for name in made for key in made[name])


def test_a_checkpoint_brings_back_weights_and_moments(tmp_path):
    ids = torch.randint(10, 4000, (2, 30), generator=torch.Generator().manual_seed(0))
    one = build.Trainer(small_model(), SMALL)
    one.update(ids, torch.ones(2, 30))
    checkpoints.save_checkpoint(tmp_path / "a", build._checkpoint(one, 3.5))
    two = build.Trainer(small_model(), SMALL)
    assert build._restore(two, checkpoints.load_checkpoint(tmp_path / "a")) == 3.5
    assert (two.seen, two.step) == (one.seen, one.step)
    for trainer in (one, two):
        trainer.update(ids, torch.ones(2, 30))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_probe_asks_real_questions_of_the_split():
    report = probe(small_model(), tokenizer(), world(), "test", 6)
    assert report["n_one_hop"] + report["n_chain"] == 6 and report["n_one_hop"] and report["n_chain"]
    assert 0 <= report["one_hop"] <= 1 and 0 <= report["chain"] <= 1


# what is shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_backbone_loads_and_says_what_it_reads(name):
    folder = BACKBONES / name
    if not folder.exists():
        pytest.skip(f"data/backbones/{name} has not been built yet (`zs backbones build`)")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    loaded = load_model(name)
    assert loaded.model.dtype == torch.float32
    ids = loaded.tokenizer("Question: what is the capital of France?\n", return_tensors="pt").input_ids
    assert torch.isfinite(loaded.model(ids).logits).all()
    report = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    assert (
        report["parameters"] == sum(p.numel() for p in loaded.model.parameters())
        and report["cpu_seconds"] > 0
    )
    for split in ("dev", "test"):
        assert {"one_hop", "chain", "n_one_hop", "n_chain"} <= set(report["read"][split])


def test_the_shipped_backbones_are_small_together():
    if not BACKBONES.exists():
        pytest.skip("data/backbones has not been built yet (`zs backbones build`)")
    size = sum(path.stat().st_size for name in SHIPPED for path in (BACKBONES / name).glob("*"))
    assert size <= MEBIBYTES * 2**20
