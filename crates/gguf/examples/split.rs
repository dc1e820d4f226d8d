//! Splits a GGUF model into parts of limited size, with names and keys as llama.cpp's gguf-split makes them: all metadata
//! in part 1, tensors in their order.
//!
//! ```text
//! cargo run -p moce-gguf --release --example split -- IN.gguf OUT-PREFIX --max-bytes 47MB
//! ```

use std::error::Error;
use std::io;
use std::path::Path;

use moce_gguf::{Gguf, Tensor, Writer, split};

const USAGE: &str = "usage: split IN.gguf OUT-PREFIX --max-bytes BYTES (with kB, MB, GB, KiB, MiB or GiB if wanted)";
/// Bytes copied at a time.
const PIECE_BYTES: usize = 8 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, prefix, flag, limit] = arguments.as_slice() else { return Err(USAGE.into()) };
    if flag != "--max-bytes" {
        return Err(USAGE.into());
    }
    let limit = parse_bytes(limit).ok_or(USAGE)?;
    let model = Gguf::open(input.as_ref())?;
    let parts = plan(&model, limit)?;
    let count = parts.len() as u32;
    for (number, writer) in (1..).zip(&parts) {
        let path = split::part_path(Path::new(prefix), number, count);
        writer.create(&path, |tensor, out| copy(&model, tensor, out))?;
        println!("{}: {} tensors, {} bytes", path.display(), writer.tensors().len(), writer.file_bytes());
    }
    Ok(())
}

fn parse_bytes(text: &str) -> Option<u64> {
    let units =
        [("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let unit = units.iter().find_map(|&(name, bytes)| text.strip_suffix(name).map(|number| (number, bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

/// The parts: each takes tensors until the next would put it over `limit`.
fn plan(model: &Gguf, limit: u64) -> Result<Vec<Writer>, Box<dyn Error>> {
    let tensor_count = i32::try_from(model.tensors().len())?;
    let mut parts: Vec<Writer> = Vec::new();
    let start = |index: usize| -> Result<Writer, Box<dyn Error>> {
        let mut writer = Writer::new();
        for (key, value) in model.metadata().iter() {
            // The alignment holds for the file that declares it, so every part does.
            if index == 0 || key == "general.alignment" {
                writer.set(key, value.clone())?;
            }
        }
        writer.set(split::NUMBER_KEY, u16::try_from(index)?)?;
        writer.set(split::COUNT_KEY, 0u16)?; // known at the end
        writer.set(split::TENSORS_KEY, tensor_count)?;
        Ok(writer)
    };
    let mut part = start(0)?;
    for tensor in model.tensors() {
        let mut grown = part.clone();
        grown.add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims())?;
        if grown.file_bytes() > limit && part.tensors().len() > 0 {
            parts.push(part);
            grown = start(parts.len())?;
            grown.add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims())?;
        }
        if grown.file_bytes() > limit {
            let size = grown.file_bytes();
            return Err(
                format!("a part with tensor {:?} alone takes {size} bytes, limit {limit}", tensor.name()).into()
            );
        }
        part = grown;
    }
    parts.push(part);
    let count = u16::try_from(parts.len())?;
    parts.iter_mut().try_for_each(|part| part.set(split::COUNT_KEY, count))?;
    Ok(parts)
}

/// Copies the data of the tensor of that name, piece by piece.
fn copy(model: &Gguf, tensor: &Tensor, out: &mut dyn io::Write) -> io::Result<()> {
    let source = model.tensor(tensor.name()).map_err(io::Error::other)?;
    let mut piece = vec![0; PIECE_BYTES.min(source.bytes())];
    let mut done = 0;
    while done < source.bytes() {
        let count = piece.len().min(source.bytes() - done);
        model.read_at(source.part(), source.offset() + done as u64, &mut piece[..count]).map_err(io::Error::other)?;
        out.write_all(&piece[..count])?;
        done += count;
    }
    Ok(())
}
