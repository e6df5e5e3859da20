"""Tokenizers with the chat templates of public models, and what these render, written out.

Templates are the models' own, as TRL keeps them; SmolLM2's is written here.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import trl
from model_fixtures import tiny_llama, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from zs_lib.models.decode import TransformersGenerator

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
BOS = {"llama3": "<|begin_of_text|>", "llama3_2": "<|begin_of_text|>", "gemma": "<bos>", "gemma3": "<bos>"}

CHATML = "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<|im_start|>system\n<|im_end|>\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
LLAMA = "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
LLAMA3 = LLAMA.format(role="user", text="{stripped}") + "<|start_header_id|>assistant<|end_header_id|>\n\n"
DATED = LLAMA.format(role="system", text="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n")
GEMMA = "<start_of_turn>user\n{lead}{stripped}<end_of_turn>\n<start_of_turn>model\n"
WRITTEN = {
    "qwen2_5": (QWEN + CHATML, EMPTY + CHATML),
    "qwen3": (CHATML, EMPTY + CHATML),
    "llama3": (
        "<|begin_of_text|>" + LLAMA3,
        "<|begin_of_text|>" + LLAMA.format(role="system", text="") + LLAMA3,
    ),
    "llama3_2": ("<|begin_of_text|>" + DATED + LLAMA3,) * 2,
    "gemma3": ("<bos>" + GEMMA.replace("{lead}", ""), "<bos>" + GEMMA.replace("{lead}", "\n\n")),
    "gemma": ("<bos>" + GEMMA.replace("{lead}", ""),) * 2,
    "smollm2": (SMOL + CHATML, EMPTY + CHATML),
}
"""Template -> what a policy's prompt becomes, and a simulator's, whose system message is empty."""


@cache
def template(name: str) -> str:
    """The chat template of a public model."""
    if name == "smollm2":
        return SMOLLM2
    return Path(trl.__file__).with_name("chat_templates").joinpath(f"{name}.jinja").read_text("utf-8")


@cache
def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with a public model's template and special tokens."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template, tokenizer.bos_token = template(name), BOS.get(name)
    return tokenizer


@cache
def chat_generator(name: str) -> TransformersGenerator:
    """A random model for a tokenizer with this template."""
    tokenizer = chat_tokenizer(name)
    model = tiny_llama(len(tokenizer), max_position_embeddings=1024, initializer_range=0.2)
    return TransformersGenerator(model.eval(), tokenizer)


def rendered(name: str, text: str, simulator: bool = False) -> list[int]:
    """Ids of what a model's template makes of a text, by what is written in WRITTEN."""
    written = WRITTEN[name][simulator].format(user=text, stripped=text.strip())
    return chat_tokenizer(name)(written, add_special_tokens=False).input_ids
