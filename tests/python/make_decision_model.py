"""Write a random Qwen3 with the tokenizer of another model: python make_decision_model.py TOKENIZER_DIRECTORY OUTPUT.

vLLM serves decisions for this architecture. Heads of 32 numbers are the smallest that its CPU build attends with.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

source, output = map(Path, sys.argv[1:])
torch.manual_seed(7)
config = Qwen3Config(
    vocab_size=len(AutoTokenizer.from_pretrained(source)),
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    # Large enough that answers matter.
    initializer_range=0.3,
)
Qwen3ForCausalLM(config).float().save_pretrained(output)
for file in source.glob("*token*"):
    shutil.copy(file, output)
