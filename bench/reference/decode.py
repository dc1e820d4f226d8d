"""Decodes a GGUF model, split or not, to one GGUF file with every tensor in F32.

    python bench/reference/decode.py models/demo-00001-of-00004.gguf demo-f32.gguf

Metadata is copied, but what says how the file was split and which formats it had.
"""

import argparse
import pathlib
import re

import gguf


def parts(path):
    """All parts of a split model, from any of them."""
    name = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not name:
        return [path]
    stem, count = name.groups()
    return [path.with_name(f"{stem}-{index:05}-of-{count}.gguf") for index in range(1, int(count) + 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    arguments = parser.parse_args()
    readers = [gguf.GGUFReader(part) for part in parts(arguments.model)]
    fields = readers[0].fields
    partial = arguments.output.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, fields["general.architecture"].contents())
    left_out = ("GGUF.", "split.", "general.architecture", "general.file_type")
    for field in fields.values():
        if not field.name.startswith(left_out):
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=element)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for reader in readers:
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, values.astype("<f4", copy=False))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(arguments.output)


if __name__ == "__main__":
    main()
