"""Copies a GGUF model with tied embeddings and adds `output.weight`, a copy of `token_embd.weight`.

    python bench/oracles/add_output_weight.py MODEL.gguf COPY.gguf

llama.cpp's qwen2moe does not load a model without `output.weight`. Both engines are given the copy where they are
compared. Needs the gguf package.
"""

import argparse
import sys

import gguf

from gguf_copy import add_tensor, copy_metadata, finish


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("copy")
    arguments = parser.parse_args()

    reader = gguf.GGUFReader(arguments.model)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "output.weight" in tensors:
        sys.exit(f"error: {arguments.model} has an output.weight already")
    writer = gguf.GGUFWriter(arguments.copy, reader.fields["general.architecture"].contents())
    copy_metadata(reader, writer)
    for name, tensor in tensors.items():
        add_tensor(writer, name, tensor)
    add_tensor(writer, "output.weight", tensors["token_embd.weight"])
    finish(writer)


if __name__ == "__main__":
    main()
