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
    let tensors: Vec<&Tensor> = model.tensors().collect();
    let mut parts: Vec<Writer> = Vec::new();
    let mut first = 0;
    let mut part = build(model, 0, &[])?;
    for (place, tensor) in tensors.iter().enumerate() {
        add(&mut part, tensor)?;
        if part.file_bytes() > limit && place > first {
            parts.push(build(model, parts.len(), &tensors[first..place])?);
            first = place;
            part = build(model, parts.len(), &[tensor])?;
        }
        if part.file_bytes() > limit {
            let (name, size) = (tensor.name(), part.file_bytes());
            return Err(format!("a part with tensor {name:?} alone takes {size} bytes, limit {limit}").into());
        }
    }
    parts.push(part);
    let count = u16::try_from(parts.len())?;
    parts.iter_mut().try_for_each(|part| part.set(split::COUNT_KEY, count))?;
    Ok(parts)
}

/// Part `index` with these tensors; the number of parts is set when it is known.
fn build(model: &Gguf, index: usize, tensors: &[&Tensor]) -> Result<Writer, Box<dyn Error>> {
    let mut part = Writer::new();
    for (key, value) in model.metadata().iter() {
        // The alignment holds for the file that declares it, so every part does.
        if index == 0 || key == "general.alignment" {
            part.set(key, value.clone())?;
        }
    }
    part.set(split::NUMBER_KEY, u16::try_from(index)?)?;
    part.set(split::COUNT_KEY, 0u16)?;
    part.set(split::TENSORS_KEY, i32::try_from(model.tensors().len())?)?;
    tensors.iter().try_for_each(|tensor| add(&mut part, tensor))?;
    Ok(part)
}

fn add(part: &mut Writer, tensor: &Tensor) -> Result<(), Box<dyn Error>> {
    Ok(part.add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims())?)
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

#[cfg(test)]
mod tests {
    use super::{build, copy, parse_bytes, plan};
    use moce_gguf::{Gguf, TensorType, Writer, split};

    #[test]
    fn parts_stay_under_the_limit_and_open_as_one() {
        let mut writer = Writer::new();
        writer.set("general.name", "whole").unwrap();
        for index in 0..20 {
            writer.add_tensor(&format!("t{index}"), TensorType::F32, &[100 + index]).unwrap();
        }
        let bytes =
            writer.to_bytes(|tensor, out| out.write_all(&vec![tensor.dims()[0] as u8; tensor.bytes()])).unwrap();
        let model = Gguf::parse("whole", bytes).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("m");
        let parts = plan(&model, 2000).unwrap();
        assert!(parts.len() >= 5);
        for (number, part) in (1..).zip(&parts) {
            assert!(part.file_bytes() <= 2000);
            let path = split::part_path(&prefix, number, parts.len() as u32);
            part.create(&path, |tensor, out| copy(&model, tensor, out)).unwrap();
            assert_eq!(path.metadata().unwrap().len(), part.file_bytes());
        }
        let again = Gguf::open(&split::part_path(&prefix, 2, parts.len() as u32)).unwrap();
        assert_eq!(again.metadata().string("general.name").unwrap(), "whole");
        for (index, tensor) in again.tensors().enumerate() {
            assert_eq!(tensor.name(), format!("t{index}"));
            let mut data = vec![0; tensor.bytes()];
            again.read_tensor(tensor, &mut data).unwrap();
            assert!(data.iter().all(|&byte| byte == 100 + index as u8));
        }
        assert_eq!(again.tensors().len(), 20);

        let alone = build(&model, 0, &[model.tensor("t0").unwrap()]).unwrap().file_bytes();
        let error = plan(&model, alone - 1).unwrap_err().to_string();
        assert!(error.starts_with("a part with tensor \"t0\" alone takes "), "{error}");
    }

    #[test]
    fn sizes_with_units() {
        assert_eq!(parse_bytes("47MB"), Some(47_000_000));
        assert_eq!(parse_bytes("3 KiB"), Some(3072));
        assert_eq!(parse_bytes("12"), Some(12));
        assert_eq!(parse_bytes("x MB"), None);
    }
}
