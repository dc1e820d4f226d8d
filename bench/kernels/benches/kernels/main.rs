//! Products next to the ceilings of the same run: `cargo bench -p moce-bench-kernels [-- [rounds] [format ...]]`.
//!
//! - Matrix times vector, weights from memory: bytes per second as a share of the best read loop, with one thread and with two.
//! - Matrix times 4 to 512 vectors: multiply-adds per second as a share of the dot instruction's rate from registers.
//! - Attention with keys and values in F16: the same share; of f32 multiply-adds an instruction does a quarter as many.
//!
//! Every round takes one short sample of everything in turn, so that what disturbs the machine disturbs all alike; the figures are
//! medians over the rounds, with the 10th and 90th percentile. With one thread the clock is the thread's own CPU time; with two
//! it is wall time, and a sample in which a thread lost its processor is left out. `MOCE_ISA` forces an instruction set.
//! Whether the products are right is tested elsewhere (`crates/kernels/tests/products`).

mod clock;
mod weights;

use clock::Samples;
use moce_kernels::{
    Activations, Attention, Cpu, CpuOptions, Isa, KvCache, KvShape, KvType, Layout, Product, ReadLoop, Rows,
};
use moce_quant::Format;
use weights::Weights;

/// Inputs of all matrices; a common width of models.
const COLUMNS: usize = 2048;

/// Bytes of a matrix in the memory-bound part: a quarter of a millisecond, short enough to end before a busy machine interrupts.
const VECTOR_BYTES: usize = 8 << 20;

/// Rows of a matrix in the arithmetic-bound part.
const BATCH_ROWS: usize = 2048;

/// Tokens of the arithmetic-bound part.
const BATCHES: [usize; 5] = [4, 8, 16, 128, 512];

/// Query heads, key heads and their width: the demo model's, Qwen1.5-MoE's, Mixtral's.
const HEADS: [(usize, usize, usize); 3] = [(9, 3, 64), (16, 16, 128), (32, 8, 128)];

/// Attending tokens: the first one's position, and how many.
const ATTENDING: [(usize, usize); 4] = [(1000, 1), (600, 64), (0, 512), (3000, 64)];

const FORMATS: [Format; 6] = [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0, Format::F16, Format::F32];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(101);
    let mut formats = FORMATS.to_vec();
    if arguments.iter().any(|argument| FORMATS.iter().any(|format| format.name() == argument)) {
        formats.retain(|format| arguments.iter().any(|argument| argument == format.name()));
    }
    let isa = std::env::var("MOCE_ISA").map_or(Isa::best(), |name| Isa::parse(&name).expect("MOCE_ISA"));
    let cpu = |threads| {
        // Bound, or a busy system puts two threads on one processor.
        let affinity = Some((0..threads).collect());
        Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(threads), affinity }).expect("threads")
    };
    println!("{isa}, {rounds} rounds\n");
    let mut weights = Weights::new(COLUMNS);
    let mut activations = Activations::new(BATCHES[BATCHES.len() - 1], COLUMNS);
    for threads in [1, 2] {
        matrix_vector(&cpu(threads), rounds, &formats, &mut weights, &mut activations);
    }
    matrix_matrix(&cpu(1), rounds.div_ceil(4), &formats, &mut weights, &mut activations);
    attention(&cpu(1), rounds.div_ceil(4));
}

fn fill(cpu: &Cpu, activations: &mut Activations, tokens: usize) {
    let values = activations.begin(tokens, COLUMNS);
    values.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * 0.37).sin());
    cpu.quantize(activations).expect("finite");
}

fn matrix_vector(cpu: &Cpu, rounds: usize, formats: &[Format], weights: &mut Weights, activations: &mut Activations) {
    /// On a busy machine few samples of two threads are undisturbed.
    const ATTEMPTS: usize = 6;
    fill(cpu, activations, 1);
    let mut output = vec![0.0; VECTOR_BYTES / 1024];
    let mut reads = vec![Samples::default(); ReadLoop::ALL.len()];
    // In the order that the kernels like best, and as files have them.
    let order = |&format| [cpu.isa().layout(format), Layout::Plain].map(|layout| (format, layout));
    let mut matrices: Vec<(Format, Layout)> = formats.iter().flat_map(order).collect();
    matrices.dedup();
    let mut products = vec![Samples::default(); matrices.len()];
    for _ in 0..rounds {
        for (&(format, layout), samples) in matrices.iter().zip(&mut products) {
            let rows = VECTOR_BYTES / format.row_bytes(COLUMNS).expect("whole quant blocks") / 16 * 16;
            for _ in 0..ATTEMPTS {
                let matrix = weights.matrix(format, layout, rows);
                let output = &mut output[..rows];
                let mut products = [Product { weights: matrix, input: activations, input_rows: Rows::All, output }];
                if samples.take(cpu, matrix.bytes.len() as f64, || cpu.multiply(&mut products)) {
                    break;
                }
            }
        }
        for (&how, samples) in ReadLoop::ALL.iter().zip(&mut reads) {
            for _ in 0..ATTEMPTS {
                let bytes = weights.bytes(VECTOR_BYTES);
                let read = || _ = cpu.read(bytes, how);
                if samples.take(cpu, bytes.len() as f64, read) {
                    break;
                }
            }
        }
    }
    let (best, ceiling) = ReadLoop::ALL
        .iter()
        .zip(&reads)
        .max_by(|a, b| a.1.median().total_cmp(&b.1.median()))
        .expect("there are read loops");
    println!(
        "matrix x vector, {} thread(s), GB/s of weights: median (10 % .. 90 %), share of the ceiling",
        cpu.threads()
    );
    println!("  {:<14} {}  {best:?}", "read", ceiling.show(1e-9));
    for ((format, layout), samples) in matrices.iter().zip(&products) {
        let share = samples.median() / ceiling.median();
        let name = format!("{} {}", format.name(), layout.name());
        println!("  {name:<14} {}  {:3.0} %", samples.show(1e-9), share * 100.0);
    }
    println!();
}

fn matrix_matrix(cpu: &Cpu, rounds: usize, formats: &[Format], weights: &mut Weights, activations: &mut Activations) {
    let mut output = vec![0.0; BATCH_ROWS * BATCHES[BATCHES.len() - 1]];
    let mut peak = Samples::default();
    let mut products = vec![[const { Samples::new() }; BATCHES.len()]; formats.len()];
    for _ in 0..rounds {
        for (batch, &tokens) in BATCHES.iter().enumerate() {
            fill(cpu, activations, tokens);
            for (&format, samples) in formats.iter().zip(&mut products) {
                let matrix = weights.matrix(format, cpu.isa().layout(format), BATCH_ROWS);
                let output = &mut output[..tokens * BATCH_ROWS];
                let mut products = [Product { weights: matrix, input: activations, input_rows: Rows::All, output }];
                let multiply_adds = (tokens * BATCH_ROWS * COLUMNS) as f64;
                samples[batch].take(cpu, multiply_adds, || cpu.multiply(&mut products));
            }
            take_peak(cpu, &mut peak);
        }
    }
    println!("matrix x matrix, 1 thread, % of the integer peak (float formats too): median (10 % .. 90 %)");
    println!("  peak   {} G multiply-adds/s", peak.show(1e-9));
    print!("  tokens");
    BATCHES.iter().for_each(|tokens| print!("{tokens:>20}"));
    println!();
    for (format, samples) in formats.iter().zip(&products) {
        print!("  {:<6}", format.name());
        samples.iter().for_each(|samples| print!("{:>20}", samples.show(100.0 / peak.median())));
        println!();
    }
}

/// One sample of the dot instruction's rate, about 0.7 ms.
fn take_peak(cpu: &Cpu, peak: &mut Samples) {
    const DOT_ROUNDS: usize = 200_000;
    let multiply_adds = cpu.dots(1) as f64 * DOT_ROUNDS as f64;
    peak.take(cpu, multiply_adds, || {
        cpu.dots(DOT_ROUNDS);
    });
}

fn attention(cpu: &Cpu, rounds: usize) {
    let positions = ATTENDING.iter().map(|(first, tokens)| first + tokens).max().expect("there are cases");
    let most_tokens = ATTENDING.iter().map(|&(_, tokens)| tokens).max().expect("there are cases");
    println!("\nattention, 1 thread, % of the integer peak (25 % is the most): median (10 % .. 90 %)");
    print!("  {:<18}", "tokens after");
    ATTENDING.iter().for_each(|(first, tokens)| print!("{:>20}", format!("{tokens} after {first}")));
    println!();
    for (heads, kv_heads, width) in HEADS {
        let shape = KvShape { kv_type: KvType::F16, context: positions, kv_heads, key_dim: width, value_dim: width };
        let mut cache = KvCache::new(shape, 1).expect("memory");
        let values: Vec<f32> =
            (0..positions.max(most_tokens) * heads * width).map(|i| (i as f32 * 0.37).sin()).collect();
        let stored = &values[..positions * kv_heads * width];
        cpu.store_kv(&mut cache, 0, 0, stored, stored);
        let mut scratch = vec![0.0; cpu.attention_scratch_len(&shape)];
        let mut out = vec![0.0; most_tokens * heads * width];
        let mut samples = [const { Samples::new() }; ATTENDING.len()];
        let mut peak = Samples::default();
        for _ in 0..rounds {
            for (&(first_position, tokens), samples) in ATTENDING.iter().zip(&mut samples) {
                let (q, out) = (&values[..tokens * heads * width], &mut out[..tokens * heads * width]);
                let seen: usize = (0..tokens).map(|token| first_position + token + 1).sum();
                let attention = Attention { cache: &cache, layer: 0, heads, scale: 0.125, first_position };
                let multiply_adds = (seen * heads * 2 * width) as f64;
                samples.take(cpu, multiply_adds, || cpu.attention(&attention, q, &mut scratch, out));
            }
            take_peak(cpu, &mut peak);
        }
        print!("  {:<18}", format!("{heads} / {kv_heads} x {width}"));
        samples.iter().for_each(|samples| print!("{:>20}", samples.show(100.0 / peak.median())));
        println!();
    }
}
