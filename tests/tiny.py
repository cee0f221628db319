"""A model small enough to be made anew for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = 40
"""The tokenizer knows w0, w1, ... and one token for all else."""


def save_tiny_llama(directory: Path, *, tied: bool, **saving: Any) -> Path:
    """A random bf16 Llama of two blocks with a word-level tokenizer, saved by transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=WORDS + 1,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, **saving)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)} | {"?": WORDS}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(directory)
    return directory
