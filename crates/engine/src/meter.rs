//! What the machine gives at most, measured the way the engine uses it: experts from flash in drained bursts, weights through the
//! kernels, plain reads of memory. Predictions rest on these figures, and measured speeds are judged by them.

use crate::experts::{LayerCatalogue, Projection, ProjectionShape};
use crate::flash::{open_fetcher, open_files};
use crate::load::Loader;
use crate::{EngineOptions, Error, architectures};
use moce_flash::{Arena, Fetcher, Memory, SlotClass, SlotId, Urgency};
use moce_gguf::Gguf;
use moce_kernels::{Activations, Cpu, Layout, Matrix, Product, ReadLoop, Rows};
use moce_quant::Format;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memory that is read by all but [`Meter::flash_rate`]: far more than any cache.
const MEMORY_BYTES: usize = 256 << 20;
/// A dense matrix is taken to have so many times as many rows as columns.
const DENSE_ROWS: usize = 4;

/// Measures flash and memory for one model.
pub struct Meter {
    layers: Vec<LayerCatalogue>,
    fetcher: Fetcher,
    slots: Vec<SlotId>,
    cpu: Cpu,
    /// K
    per_token: usize,
    /// State of a linear congruential generator: which experts are read.
    random: u64,
}

impl Meter {
    /// A meter that reads bursts of up to `most` experts of this model, by the same device code and options as an engine. It holds memory
    /// for so many. `None`: the model has no experts.
    ///
    /// # Errors
    /// The file is damaged or not supported, or memory does not suffice.
    pub fn open(gguf: &Gguf, options: &EngineOptions, most: usize) -> Result<Option<Meter>, Error> {
        let mut loader = Loader::new(gguf);
        let architecture = architectures::load(&mut loader)?;
        let layers = loader.experts.layers().to_vec();
        if layers.is_empty() {
            return Ok(None);
        }
        let files = open_files(gguf, options.flash.direct)?;
        let bytes = layers.iter().map(|layer| layer.slot_bytes(files.block_bytes())).max().unwrap_or(0);
        let arena = Arc::new(Arena::reserve(&[SlotClass { bytes, count: most.max(1) }])?);
        let slots: Vec<SlotId> = arena.slots(0).collect();
        let fetcher = open_fetcher(&layers, files, &arena, &slots, &options.flash)?;
        let per_token = architecture.hyperparameters().experts.map_or(1, |shape| shape.per_token);
        Ok(Some(Meter { layers, fetcher, slots, cpu: Cpu::new(&options.cpu)?, per_token, random: 1 }))
    }

    /// How it reads, in words.
    pub fn flash(&self) -> String {
        self.fetcher.to_string()
    }

    /// Experts of the largest burst.
    pub fn most(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of experts a second in bursts of `experts` whole ones of one random layer, each burst drained before the next, for `time`.
    ///
    /// # Errors
    /// A read fails.
    pub fn flash_rate(&mut self, experts: usize, time: Duration) -> Result<f64, Error> {
        let slots = experts.clamp(1, self.slots.len());
        let begin = Instant::now();
        let mut bytes = 0;
        while bytes == 0 || begin.elapsed() < time {
            let layer = self.below(self.layers.len());
            for slot in 0..slots {
                let expert = self.below(self.layers[layer].count);
                let slices = self.layers[layer].slices(expert as u32);
                self.fetcher.request(self.slots[slot], &slices, Urgency::Demand)?;
            }
            self.fetcher.submit();
            self.fetcher.wait_all()?;
            for &slot in &self.slots[..slots] {
                if let Some(error) = self.fetcher.take_error(slot) {
                    return Err(error.into());
                }
                self.fetcher.arena().evict(slot)?;
            }
            bytes += self.layers[layer].expert_bytes() * slots as u64;
        }
        Ok(bytes as f64 / begin.elapsed().as_secs_f64())
    }

    /// Bytes of weights a second that the kernels multiply with one token, from memory, for `time`: gate and up projections of as many
    /// experts as a token runs.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn expert_rate(&self, time: Duration) -> Result<f64, Error> {
        let ProjectionShape { format, rows, columns, .. } = self.gate();
        self.product_rate(format, rows, columns, 2 * self.per_token, time)
    }

    /// The same for large matrices one at a time, as attention and head have them, in the format of the experts.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn dense_rate(&self, time: Duration) -> Result<f64, Error> {
        let ProjectionShape { format, columns, .. } = self.gate();
        self.product_rate(format, DENSE_ROWS * columns, columns, 1, time)
    }

    fn gate(&self) -> ProjectionShape {
        self.layers[0].projections[Projection::Gate as usize]
    }

    /// Bytes a second of products of `at_once` matrices in one parallel region.
    fn product_rate(
        &self,
        format: Format,
        rows: usize,
        columns: usize,
        at_once: usize,
        time: Duration,
    ) -> Result<f64, Error> {
        let matrix_bytes = rows * format.row_bytes(columns).unwrap_or(0);
        let mut memory = reserve(MEMORY_BYTES.max(matrix_bytes * at_once))?;
        let layout = memory
            .chunks_exact_mut(matrix_bytes)
            .fold(Layout::Plain, |_, bytes| self.cpu.order(format, rows, columns, bytes));
        let matrices = memory.chunks_exact(matrix_bytes);
        let matrices = matrices.map(|bytes| Matrix::new(format, rows, columns, layout, bytes));
        let matrices: Vec<Matrix<'_>> = matrices.collect::<Result<_, _>>()?;
        let mut token = Activations::new(1, columns);
        token.begin(1, columns).fill(1.0);
        self.cpu.quantize(&mut token)?;
        let _bound = self.cpu.bind_caller();
        let mut outputs = vec![0.0; at_once * rows];
        let begin = Instant::now();
        let mut bytes = 0;
        while begin.elapsed() < time {
            for matrices in matrices.chunks_exact(at_once) {
                let outputs = outputs.chunks_exact_mut(rows);
                let product = |(&weights, output)| Product { weights, input: &token, input_rows: Rows::All, output };
                let mut products: Vec<Product<'_>> = matrices.iter().zip(outputs).map(product).collect();
                self.cpu.multiply(&mut products);
                bytes += matrix_bytes * at_once;
            }
        }
        Ok(bytes as f64 / begin.elapsed().as_secs_f64())
    }

    /// Bytes a second that all compute threads together read from memory with the best of several loops, each for `time`.
    ///
    /// # Errors
    /// There is no memory to read.
    pub fn memory_rate(&self, time: Duration) -> Result<f64, Error> {
        let mut memory = reserve(MEMORY_BYTES)?;
        memory.fill(1); // pages that were only read would all be the system's page of zeros
        let _bound = self.cpu.bind_caller();
        let rate = |how: ReadLoop| {
            let begin = Instant::now();
            let mut bytes = 0;
            while bytes == 0 || begin.elapsed() < time {
                bytes += self.cpu.read(&memory, how);
            }
            bytes as f64 / begin.elapsed().as_secs_f64()
        };
        Ok(ReadLoop::ALL.into_iter().map(rate).fold(0.0, f64::max))
    }

    fn below(&mut self, bound: usize) -> usize {
        // Knuth's MMIX constants.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound
    }
}

fn reserve(bytes: usize) -> Result<Memory, Error> {
    Memory::reserve(bytes).map_err(|cause| Error::Memory { bytes: bytes as u64, cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_testkit::TinyModel;

    #[test]
    fn everything_that_is_measured_takes_time_and_moves_bytes() {
        let model = TinyModel::open("qwen2moe");
        let mut meter = Meter::open(&model.gguf, &EngineOptions::default(), 3).unwrap().unwrap();
        let moment = Duration::from_millis(5);
        assert_eq!(meter.most(), 3);
        for burst in 1..=4 {
            assert!(meter.flash_rate(burst, moment).unwrap() > 0.0);
        }
        assert!(meter.expert_rate(moment).unwrap() > 0.0);
        assert!(meter.dense_rate(moment).unwrap() > 0.0);
        assert!(meter.memory_rate(moment).unwrap() > 0.0);
    }

    #[test]
    fn a_model_without_experts_has_nothing_to_read() {
        let model = TinyModel::open("llama");
        assert!(Meter::open(&model.gguf, &EngineOptions::default(), 3).unwrap().is_none());
    }
}
