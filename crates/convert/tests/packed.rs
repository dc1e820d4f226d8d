//! Packed models: the same bits as the original on every instruction set; damage is found by verifying and by checked fetches; what cannot
//! be packed is refused.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_convert::{Error, Pack, verify};
use moce_engine::packed::{CHECKSUMS, Header};
use moce_engine::{Budget, Capacity, CpuOptions, Engine, EngineOptions, ExpertMap, FlashOptions, Isa, Session};
use moce_gguf::{Gguf, Tensor, Value, Writer};
use moce_quant::Format;
use moce_testkit::{ModelFile, TinyModel, Variant, fused, requantised, variant};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

fn pack(model: &Gguf, isa: Isa, path: &Path) {
    Pack::new(model, isa).unwrap().write(path, false, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// Logits of the prompt's first half at once, then of its second half token by token, as bits.
fn bits(model: &Gguf, tokens: &[u32], options: &EngineOptions) -> Vec<u32> {
    let engine = Arc::new(Engine::load(model, options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    let mut all = Vec::new();
    let (prompt, rest) = tokens.split_at(tokens.len() / 2);
    session.score(prompt, &mut |_, logits| all.extend(logits.iter().map(|x| x.to_bits()))).unwrap();
    for &token in rest {
        session.decode(token).unwrap();
        all.extend(session.logits().iter().map(|x| x.to_bits()));
    }
    all
}

fn options(isa: Isa, capacity: Option<usize>, verify: bool) -> EngineOptions {
    EngineOptions {
        cpu: CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() },
        memory: if capacity.is_some() { Budget::Auto } else { Budget::All },
        capacity: capacity.map(Capacity::Experts),
        flash: FlashOptions { verify, ..FlashOptions::default() },
        ..EngineOptions::default()
    }
}

#[test]
fn a_packed_model_has_the_bits_of_its_original_on_every_instruction_set() {
    let folder = tempfile::tempdir().unwrap();
    // Flash is probed once for all.
    let profiles = Some(folder.path().join("flash.json"));
    let options = |isa, capacity, verify| {
        let options = options(isa, capacity, verify);
        EngineOptions { flash: FlashOptions { profiles: profiles.clone(), ..options.flash }, ..options }
    };
    for (name, per_token, formats) in [
        ("mixtral", 2, &[Format::Q4_0, Format::Q8_0, Format::F16][..]),
        ("qwen2moe", 3, &[Format::Q5_0, Format::Q4_1][..]),
    ] {
        let TinyModel { gguf, tokens, .. } = TinyModel::open(name);
        for &format in formats {
            let plain = requantised(&gguf, format);
            let expected = bits(&plain, &tokens, &options(Isa::Scalar, None, false));
            for (kind, source) in [("stacked", &plain), ("fused", &fused(&plain))] {
                for isa in Isa::ALL {
                    let path = folder.path().join(format!("{name}-{}-{kind}-{isa}.gguf", format.name()));
                    pack(source, isa, &path);
                    let packed = Gguf::open(&path).unwrap();
                    for running in Isa::available() {
                        for capacity in [None, Some(0), Some(per_token + 1)] {
                            let found = bits(&packed, &tokens, &options(running, capacity, true));
                            let what = format!("{name} in {}, {kind}, packed for {isa}", format.name());
                            assert!(found == expected, "{what}, on {running}, {capacity:?} cached");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_packed_model_is_its_original_by_identity_and_one_expert_is_one_piece() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.gguf");
    let plain = requantised(&TinyModel::open("qwen2moe").gguf, Format::Q4_0);
    pack(&plain, Isa::Avx2, &path);
    let packed = Gguf::open(&path).unwrap();
    assert_eq!(packed.metadata().string("general.architecture").unwrap(), "moce-packed");
    let (original, map) = (ExpertMap::of(&plain).unwrap(), ExpertMap::of(&packed).unwrap());
    assert_eq!((map.identity, &map.architecture), (original.identity, &original.architecture));
    for layer in &map.layers {
        let mut end = layer.slices(0)[0].offset;
        for expert in 0..layer.count as u32 {
            for slice in layer.slices(expert) {
                assert_eq!(
                    (slice.offset, slice.offset % 4096),
                    (end, 0),
                    "projections stand behind each other, on blocks"
                );
                end = (end + slice.bytes as u64).next_multiple_of(4096);
            }
        }
    }
    assert_eq!(Header::read(&packed).unwrap().unwrap().isa, "avx2");
    assert_eq!(Pack::new(&plain, Isa::Avx2).unwrap().file_bytes(), std::fs::metadata(&path).unwrap().len());
}

#[test]
fn every_damaged_byte_is_found_by_verify() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.gguf");
    pack(&requantised(&TinyModel::open("mixtral").gguf, Format::Q4_0), Isa::best(), &path);
    let packed = Gguf::open(&path).unwrap();
    let whole = verify(&packed, &mut |_| ControlFlow::Continue(())).unwrap();
    let header = Header::read(&packed).unwrap().unwrap();
    let (dense, slices) = (header.dense(&packed).count(), header.slices(&packed).unwrap());
    assert_eq!((whole.damaged, whole.checksums), (0, 1 + dense + slices.len()));
    assert_eq!(whole.bytes, std::fs::metadata(&path).unwrap().len(), "every byte is read once");

    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let tensor = |name: &str| packed.tensor(name).unwrap();
    let last = slices[slices.len() - 1];
    let places = [
        ("a norm", tensor("blk.0.attn_norm.weight").offset() + 5),
        ("a dense matrix", tensor("blk.0.attn_q.weight").offset() + 77),
        ("an expert's first byte", slices[0].offset),
        ("an expert's last byte", last.offset + last.bytes as u64 - 1),
        ("zeros behind a projection", slices[1].offset - 1),
        ("a checksum", tensor(CHECKSUMS).offset() + 8 * 3),
        ("the last byte of the file", whole.bytes - 1),
    ];
    for (what, offset) in places {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
        let found = verify(&packed, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(found.damaged, 1, "{what}: {:?}", found.damage);
        assert_eq!(found.damage[0].file, path);
        if what != "a checksum" {
            let before = offset - found.damage[0].offset;
            assert!(before <= 1 << 20, "{what}: {before} bytes before byte {offset}: {:?}", found.damage);
        }
        file.write_all_at(&byte, offset).unwrap();
    }
    file.set_len(whole.bytes - 1).unwrap();
    let cut = Gguf::open(&path).unwrap();
    let found = verify(&cut, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(found.damaged == 1 && found.damage[0].what.contains("expected"), "{:?}", found.damage);
    file.set_len(whole.bytes - 4096).unwrap();
    assert!(Gguf::open(&path).unwrap_err().to_string().contains("packed.gguf"));
}

#[test]
fn a_source_that_changes_while_it_is_read_gives_nothing() {
    let source = ModelFile::new("mixtral", Format::Q4_0);
    let path = source.folder().join("packed.gguf");
    let model = Gguf::open(&source.path).unwrap();
    let file = std::fs::File::options().write(true).open(&source.path).unwrap();
    let last = model.parts()[0].bytes() - 1;
    let mut touch = |_| {
        // Longer than the ticks in which file systems count.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all_at(&[0], last).unwrap();
        ControlFlow::Continue(())
    };
    let packed = Pack::new(&model, Isa::best()).unwrap().write(&path, false, &mut touch);
    assert!(matches!(packed, Err(Error::Changed { ref file }) if *file == source.path), "{packed:?}");
    assert_eq!(std::fs::read_dir(source.folder()).unwrap().count(), 1, "nothing is left behind");
    assert!(matches!(verify(&model, &mut touch), Err(Error::Changed { .. })));
}

#[test]
fn checked_fetches_stop_at_a_damaged_expert_and_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.gguf");
    let TinyModel { gguf, tokens, .. } = TinyModel::open("mixtral");
    let plain = requantised(&gguf, Format::Q4_0);
    pack(&plain, Isa::best(), &path);
    let packed = Gguf::open(&path).unwrap();
    let checked = options(Isa::best(), Some(2), true);
    let expected = bits(&packed, &tokens, &checked);
    // One code of one weight in the down projection of every expert: without checksums nobody would see it.
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let slices: Vec<_> = Header::read(&packed).unwrap().unwrap().slices(&packed).unwrap();
    let flip = |offset: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    };
    let downs = || slices.iter().skip(2).step_by(3);
    downs().for_each(|slice| flip(slice.offset + slice.bytes as u64 - 1));
    let packed = Gguf::open(&path).unwrap();
    assert!(bits(&packed, &tokens, &options(Isa::best(), Some(2), false)) != expected);
    let engine = Arc::new(Engine::load(&packed, &checked).unwrap());
    let message = Session::new(&engine).unwrap().prompt(&tokens).unwrap_err().to_string();
    assert!(message.contains("packed.gguf") && message.contains("checksum"), "{message}");
    let offset = message.split("offset ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(downs().any(|slice| slice.offset == offset), "{message}");
    // Everything resident is fetched at the start, so it is checked there.
    assert!(matches!(Engine::load(&packed, &options(Isa::best(), None, true)), Err(moce_engine::Error::Flash(_))));
    // A plain model has nothing to check with.
    let refused = Engine::load(&plain, &checked).map(|_| ()).unwrap_err();
    assert!(matches!(refused, moce_engine::Error::NoChecksums { .. }), "{refused}");
}

#[test]
fn split_models_are_packed_and_verified_as_whole_ones() {
    let folder = tempfile::tempdir().unwrap();
    let model = requantised(&TinyModel::open("mixtral").gguf, Format::Q8_0);
    let tensors: Vec<&Tensor> = model.tensors().collect();
    let parts = tensors.chunks(tensors.len().div_ceil(3)).enumerate();
    for (number, tensors) in parts {
        let mut writer = Writer::new();
        if number == 0 {
            model.metadata().iter().for_each(|(key, value)| writer.set(key, value.clone()).unwrap());
        }
        writer.set("split.no", number as u16).unwrap();
        writer.set("split.count", 3u16).unwrap();
        writer.set("split.tensors.count", model.tensors().len() as i32).unwrap();
        for tensor in tensors {
            writer.add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims()).unwrap();
        }
        let path = folder.path().join(format!("m-{:05}-of-00003.gguf", number + 1));
        let data = |tensor: &Tensor, out: &mut dyn std::io::Write| {
            let mut bytes = vec![0; tensor.bytes()];
            model.read_tensor(model.tensor(tensor.name()).unwrap(), &mut bytes).unwrap();
            out.write_all(&bytes)
        };
        writer.create(&path, data).unwrap();
    }
    let third = folder.path().join("m-00003-of-00003.gguf");
    let split = Gguf::open(&third).unwrap();
    let [one, other] = ["one.gguf", "other.gguf"].map(|name| folder.path().join(name));
    pack(&split, Isa::best(), &one);
    pack(&model, Isa::best(), &other);
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&other).unwrap());
    // A packed file cannot be unpacked, so none takes the place of what it was made from.
    let again = Pack::new(&split, Isa::best()).unwrap();
    let refused = again.write(&third, true, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(refused, Error::OutputIsSource { .. }), "{refused}");

    let found = verify(&split, &mut |_| ControlFlow::Continue(())).unwrap();
    let bytes: u64 = split.parts().iter().map(|part| part.bytes()).sum();
    assert_eq!((found.damaged, found.checksums, found.bytes), (0, 0, bytes));
    // The scale of the second quant block of a matrix in the last part is no number.
    let damaged =
        split.tensors().filter(|tensor| tensor.part() == 2 && tensor.tensor_type().block_len() == 32).last().unwrap();
    let file = std::fs::File::options().write(true).open(&third).unwrap();
    file.write_all_at(&[0, 0x7e], damaged.offset() + 34).unwrap();
    let found = verify(&split, &mut |_| ControlFlow::Continue(())).unwrap();
    let damage = &found.damage[0];
    assert_eq!((found.damaged, &damage.file, damage.offset), (1, &third, damaged.offset() + 34), "{damage:?}");
    assert!(damage.what.contains(damaged.name()), "{damage:?}");
    file.set_len(damaged.offset()).unwrap();
    assert!(Gguf::open(&third).unwrap_err().to_string().contains("m-00003-of-00003.gguf"));
}

#[test]
fn what_cannot_be_packed_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |model: &Gguf| Pack::new(model, Isa::best()).map(|_| ()).unwrap_err();
    assert!(matches!(refused(&TinyModel::open("llama").gguf), Error::NoExperts { .. }));
    let path = folder.path().join("packed.gguf");
    let model = TinyModel::open("mixtral").gguf;
    pack(&model, Isa::Avx2, &path);
    let packed = Gguf::open(&path).unwrap();
    let message = refused(&packed).to_string();
    assert!(message.contains("packed.gguf") && message.contains("avx2"), "{message}");
    let change = |metadata: &[(&str, Option<Value>)]| {
        variant(&packed, &Variant { metadata, tensor: &|tensor, bytes| (tensor.tensor_type(), bytes) })
    };
    let opened =
        |model: &Gguf| Engine::load(model, &options(Isa::best(), None, false)).map(|_| ()).unwrap_err().to_string();
    for (key, value, expected) in [
        ("moce.packed.version", Some(Value::from(2u32)), "version 2"),
        ("moce.packed.architecture", None, "moce.packed.architecture"),
        ("moce.packed.identity", Some(Value::from("none")), "16 hexadecimal digits"),
        ("moce.packed.layers", Some(Value::Array(moce_gguf::Array::U32(vec![0, 0]))), "layers that do not ascend"),
        ("moce.packed.shapes", Some(Value::Array(moce_gguf::Array::U32(vec![8, 64]))), "moce.packed.shapes"),
        ("general.architecture", Some(Value::from("abacus")), "abacus"),
    ] {
        let message = opened(&change(&[(key, value)]));
        assert!(message.contains(expected), "{key}: {message}");
    }
    // Nothing is overwritten, and nothing is left behind.
    let again = Pack::new(&model, Isa::Avx2).unwrap();
    assert!(again.write(&path, false, &mut |_| ControlFlow::Continue(())).is_err());
    let stopped = again.write(&path, true, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Stopped { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(verify(&packed, &mut |_| ControlFlow::Continue(())).unwrap().damaged, 0);
}
