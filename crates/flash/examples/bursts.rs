//! How fast the device reads experts in drained bursts, against `fio` on the same file in the same run.
//!
//! ```text
//! cargo run --release -p moce-flash --example bursts -- FILE [--rounds 7] [--seconds 0.5] [--slice 1622016] [--backend auto]
//! ```
//!
//! FILE should be incompressible and larger than memory is fast (8 GB). First `fio` (io_uring, direct) is surveyed over
//! block sizes and depths, and our own probe runs once. Then, in every round, in changing order: fio with its best three
//! settings, and our bursts of 1, 2, 4 and 8 experts of three slices, each drained before the next. The share is that of the
//! medians, against the setting of fio with the best median; behind it the median and spread of the rounds' own shares.

use moce_flash::{
    Arena, Backend, Direct, Error, Fetcher, Files, Options, Probe, Slice, SlotClass, SlotId, Tuning, Urgency,
    slot_bytes,
};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const EXPERTS: [usize; 4] = [1, 2, 4, 8];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path =
        arguments.next().ok_or("usage: bursts FILE [--rounds N] [--seconds S] [--slice BYTES] [--backend NAME]")?;
    let (mut rounds, mut seconds, mut slice, mut backend) = (7usize, 0.5f64, 1_622_016usize, Backend::Auto);
    let mut tunings = Vec::new();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or("a flag without a value")?;
        match flag.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--seconds" => seconds = value.parse()?,
            "--slice" => slice = value.parse()?,
            "--backend" => backend = value.parse()?,
            "--tuning" => {
                let (piece, depth) = value.split_once('x').ok_or("--tuning KIBxDEPTH")?;
                tunings.push(Tuning { piece_bytes: piece.parse::<usize>()? << 10, depth: depth.parse()? });
            }
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let files = Arc::new(Files::open([&path], Direct::Auto)?);
    let bytes = slot_bytes(&[slice; 3], files.block_bytes());
    let arena = Arc::new(Arena::reserve(&[SlotClass { bytes, count: 8 }])?);
    let slots: Vec<SlotId> = arena.slots(0).collect();
    let threads = if backend == Backend::Pread { 32 } else { 16 };
    let mut fetcher = Fetcher::open(files, arena, &Options { backend, threads, ..Options::default() })?;
    let probe =
        Probe { slices: &[slice; 3], slots: &slots[..2], limit: Duration::from_millis(500), depth: None, seed: 1 };
    let begin = Instant::now();
    let profile = fetcher.probe(&probe)?;
    println!("device: {fetcher}; probed in {:.2?}: {:.2} GB/s", begin.elapsed(), profile.bandwidth / 1e9);
    for (tuning, rate) in &profile.tried {
        println!("  probe: {tuning}: {:.2} GB/s", rate / 1e9);
    }
    if tunings.is_empty() {
        tunings.push(profile.tuning);
    }

    let mut survey: Vec<(f64, Fio)> = Vec::new();
    for kibibytes in [256, 512, 1024, 1584, 4096] {
        for depth in [4, 8, 16, 32, 64] {
            let fio = Fio { kibibytes, depth };
            survey.push((fio.rate(&path, 0.4)?, fio));
        }
    }
    survey.sort_by(|one, other| other.0.total_cmp(&one.0));
    for (rate, fio) in survey.iter().take(5) {
        println!("  fio survey: {} KiB x {}: {:.2} GB/s", fio.kibibytes, fio.depth, rate / 1e9);
    }
    let fios: Vec<Fio> = survey.iter().take(3).map(|&(_, fio)| fio).collect();

    let mut fio_rates = vec![Vec::new(); fios.len()];
    let mut ours = vec![[const { Vec::<Bursts>::new() }; EXPERTS.len()]; tunings.len()];
    let mut seed = 7;
    for round in 0..rounds {
        let jobs = fios.len() + tunings.len() * EXPERTS.len();
        for job in 0..jobs {
            let job = (job + round * 3) % jobs;
            if let Some(fio) = fios.get(job) {
                fio_rates[job].push(fio.rate(&path, seconds)?);
            } else {
                let (tuning, experts) = ((job - fios.len()) / EXPERTS.len(), (job - fios.len()) % EXPERTS.len());
                fetcher.set_tuning(tunings[tuning]);
                seed += 1;
                ours[tuning][experts].push(bursts(&mut fetcher, &slots[..EXPERTS[experts]], slice, seconds, seed)?);
            }
        }
    }
    for (fio, rates) in fios.iter().zip(&fio_rates) {
        println!("fio, {} KiB x {}: {} GB/s", fio.kibibytes, fio.depth, summary(rates, 1e9));
    }
    let best = fio_rates.iter().max_by(|one, other| median(one).total_cmp(&median(other))).ok_or("no fio")?;
    for (tuning, measured) in tunings.iter().zip(&ours) {
        for (experts, measured) in EXPERTS.iter().zip(measured) {
            let rates: Vec<f64> = measured.iter().map(|one| one.rate).collect();
            let firsts: Vec<f64> = measured.iter().map(|one| one.first).collect();
            let shares: Vec<f64> = rates.iter().zip(best).map(|(ours, fio)| ours / fio).collect();
            println!(
                "{tuning}: bursts of {experts}: {} GB/s, {:.2} of fio; by round {}; first expert at {:.2} of the burst",
                summary(&rates, 1e9),
                median(&rates) / median(best),
                summary(&shares, 1.0),
                median(&firsts)
            );
        }
    }
    Ok(())
}

/// What a series of drained bursts showed.
#[derive(Clone)]
struct Bursts {
    /// Bytes of slices a second.
    rate: f64,
    /// When the first expert had landed, as a share of the burst's time.
    first: f64,
}

/// Drained bursts at random places.
fn bursts(fetcher: &mut Fetcher, slots: &[SlotId], slice: usize, seconds: f64, seed: u64) -> Result<Bursts, Error> {
    let file_bytes = fetcher.files()[0].identity().bytes;
    let places = (file_bytes - slice as u64) / 32;
    let mut state = seed;
    let mut place = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Slice { file: 0, offset: (state >> 16) % places * 32, bytes: slice }
    };
    let begin = Instant::now();
    let mut bytes = 0;
    let mut firsts = Vec::new();
    while begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        for &slot in slots {
            fetcher.request(slot, &[place(), place(), place()], Urgency::Demand)?;
        }
        fetcher.submit();
        let mut first = 0.0;
        for &slot in slots {
            (0..3).try_for_each(|part| fetcher.wait(slot, part))?;
            if slot == slots[0] {
                first = start.elapsed().as_secs_f64();
            }
        }
        firsts.push(first / start.elapsed().as_secs_f64());
        bytes += slots.len() * 3 * slice;
    }
    Ok(Bursts { rate: bytes as f64 / begin.elapsed().as_secs_f64(), first: median(&firsts) })
}

/// One setting of fio.
#[derive(Clone, Copy)]
struct Fio {
    kibibytes: usize,
    depth: usize,
}

impl Fio {
    /// Bytes a second of random direct reads by io_uring.
    fn rate(self, path: &str, seconds: f64) -> Result<f64, Box<dyn std::error::Error>> {
        let output = Command::new("fio")
            .args(["--name=reads", "--readonly", "--rw=randread", "--direct=1", "--ioengine=io_uring", "--fixedbufs"])
            .args(["--registerfiles", "--time_based", "--output-format=terse", "--terse-version=3"])
            .arg(format!("--filename={path}"))
            .arg(format!("--bs={}k", self.kibibytes))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!("--runtime={}ms", (seconds * 1e3) as u64))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // The seventh field of terse output is the read bandwidth in KiB/s.
        let field = text.split(';').nth(6).ok_or_else(|| format!("fio said: {text}"))?;
        Ok(field.parse::<f64>()? * 1024.0)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn summary(values: &[f64], unit: f64) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min) / unit;
    let most = values.iter().copied().fold(0.0, f64::max) / unit;
    format!("{:.2} ({least:.2} to {most:.2})", median(values) / unit)
}
