"""Copies a GGUF model with tied embeddings, from all its parts, and adds `output.weight`, a copy of `token_embd.weight`.

    python bench/oracles/add_output_weight.py MODEL.gguf [PART.gguf ...] COPY.gguf

llama.cpp's qwen2moe does not load a model without `output.weight`. Both engines are given the copy where they are
compared. Needs the gguf package.
"""

import argparse
import sys

import gguf

from gguf_copy import add_tensor, copy_metadata, finish


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="+", help="the file, or all parts in their order")
    parser.add_argument("copy")
    arguments = parser.parse_args()

    readers = [gguf.GGUFReader(part) for part in arguments.model]
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    if "output.weight" in tensors:
        sys.exit(f"error: {arguments.model[0]} has an output.weight already")
    writer = gguf.GGUFWriter(arguments.copy, readers[0].fields["general.architecture"].contents())
    copy_metadata(readers[0], writer, lambda key: not key.startswith("split."))
    for name, tensor in tensors.items():
        add_tensor(writer, name, tensor)
    add_tensor(writer, "output.weight", tensors["token_embd.weight"])
    finish(writer)


if __name__ == "__main__":
    main()
