"""Copies metadata and tensors from one GGUF file to another, unchanged, with the `gguf` package."""

import gguf


def copy_metadata(reader, writer, keep=lambda key: True):
    """Every key that `keep` accepts but the architecture, which the writer has written, and the file's own counts."""
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF.") or not keep(field.name):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)


def add_tensor(writer, name, tensor):
    """The tensor's bytes, whatever their format, under `name`."""
    writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
