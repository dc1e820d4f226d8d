//! The header of a trace: whose routers spoke, how many experts there are, what the scores are, and how they were routed.

use super::stream::{Sink, Source};
use super::{MAGIC, TraceError, VERSION};
use crate::{LayerShape, Start, TouchOrder};
use std::io::{Read, Write};

const MOST_LAYERS: usize = 4096;
/// Ids are stored in 16 bits, the last of which stands for none.
const MOST_EXPERTS: usize = 65_535;
const MOST_PER_TOKEN: usize = 256;
/// Experts of all layers together: a simulation holds some tens of bytes for each, several times a core. Ten times what large models have.
const MOST_ALL_EXPERTS: usize = 1 << 18;
/// Four gigabytes, many times the largest there are: 2^32 misses, more than any trace can hold, add up to less than 2^64 bytes.
const MOST_EXPERT_BYTES: u64 = 1 << 32;
const MOST_TEXT_BYTES: usize = 65_536;

/// What the contents field says.
const HAS_SCORES: u32 = 1;
const HALF_PRECISION: u32 = 2;

/// What a whole trace is about.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceHeader {
    /// Whose routers they are.
    pub model: TraceModel,
    /// The MoE layers, in order.
    pub layers: Vec<TraceLayer>,
    /// N, experts a layer.
    pub experts: usize,
    /// K, the most that are chosen for a token.
    pub experts_per_token: usize,
    /// What scores are stored; `None`: only selections.
    pub scores: Option<StoredScores>,
    /// The routing policy of generated tokens.
    pub policy: String,
    /// The routing policy of prompt tokens.
    pub prompt_policy: String,
    /// The eviction.
    pub eviction: String,
    /// In which order experts became most recent.
    pub touch: TouchOrder,
    /// What was cached where the trace begins; and, unless the session was warmed, at each start of a sequence and of a window.
    pub start: Start,
}

/// The model that a trace was recorded with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceModel {
    /// Its name, for people.
    pub name: String,
    /// GGUF's name of the architecture.
    pub architecture: String,
    /// Tells models apart; 0 if unknown.
    pub fingerprint: u64,
    /// Bytes of all its files; 0 if unknown.
    pub bytes: u64,
}

/// An MoE layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceLayer {
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// C, experts logically cached while recording; 0 if none were.
    pub capacity: usize,
}

/// What the scores in a trace are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredScores {
    /// What the model sorts by.
    pub kind: ScoreKind,
    /// How they are stored.
    pub precision: Precision,
}

/// What a model sorts its experts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreKind {
    /// The router's logits, before any softmax.
    Logits,
    /// Sigmoid scores with the model's selection bias added.
    BiasedSigmoid,
}

/// How scores are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As they were: a replay chooses as the model did.
    F32,
    /// Rounded to half precision: half the size, and near ties may fall the other way in a replay.
    F16,
}

impl TraceHeader {
    /// The numbers that every token's place depends on.
    pub(super) fn shape(&self) -> Shape {
        Shape { layers: self.layers.len(), experts: self.experts, per_token: self.experts_per_token }
    }

    /// The layer as a session routes it.
    ///
    /// # Panics
    /// There is no such layer.
    pub fn layer_shape(&self, layer: usize) -> LayerShape {
        LayerShape {
            experts: self.experts,
            experts_per_token: self.experts_per_token,
            capacity: self.layers[layer].capacity,
        }
    }

    /// Bytes that a token takes in the trace.
    pub fn token_bytes(&self) -> u64 {
        let scores = match self.scores {
            None => 0,
            Some(StoredScores { precision: Precision::F32, .. }) => 4 * self.experts,
            Some(StoredScores { precision: Precision::F16, .. }) => 2 * self.experts,
        };
        8 + self.layers.len() as u64 * (2 * self.experts_per_token + scores) as u64
    }

    pub(super) fn write<W: Write>(&self, sink: &mut Sink<W>) -> Result<(), TraceError> {
        self.check()?;
        let contents = match self.scores {
            None => 0,
            Some(StoredScores { precision: Precision::F32, .. }) => HAS_SCORES,
            Some(StoredScores { precision: Precision::F16, .. }) => HAS_SCORES | HALF_PRECISION,
        };
        let kind = match self.scores.map(|scores| scores.kind) {
            None | Some(ScoreKind::Logits) => 0,
            Some(ScoreKind::BiasedSigmoid) => 1,
        };
        let (start, seed) = match &self.start {
            Start::Empty => (0, 0),
            Start::First => (1, 0),
            Start::Random(seed) => (2, *seed),
            Start::Given(_) => (3, 0),
        };
        let touch = match self.touch {
            TouchOrder::StrongFirst => 0,
            TouchOrder::WeakFirst => 1,
        };
        sink.put(MAGIC)?;
        let Shape { layers, experts, per_token } = self.shape();
        for number in [VERSION, contents, kind, layers as u32, experts as u32, per_token as u32, touch, start] {
            sink.put(&number.to_le_bytes())?;
        }
        for number in [seed, self.model.fingerprint, self.model.bytes] {
            sink.put(&number.to_le_bytes())?;
        }
        for layer in &self.layers {
            sink.put(&layer.expert_bytes.to_le_bytes())?;
            sink.put(&(layer.capacity as u64).to_le_bytes())?;
        }
        if let Start::Given(lists) = &self.start {
            for list in lists {
                sink.put(&(list.len() as u32).to_le_bytes())?;
                list.iter().try_for_each(|id| sink.put(&id.to_le_bytes()))?;
            }
        }
        for text in self.texts() {
            sink.put(&(text.len() as u32).to_le_bytes())?;
            sink.put(text.as_bytes())?;
        }
        Ok(())
    }

    fn texts(&self) -> [&str; 5] {
        [&self.model.name, &self.model.architecture, &self.policy, &self.prompt_policy, &self.eviction]
    }

    /// What [`TraceHeader::read`] would refuse is not written.
    fn check(&self) -> Result<(), TraceError> {
        let Shape { layers, experts, per_token } = self.shape();
        let limits = [
            ("MoE layers", layers, 1..=MOST_LAYERS),
            ("experts", experts, 1..=MOST_EXPERTS),
            ("experts per token", per_token, 1..=MOST_PER_TOKEN.min(experts)),
        ];
        let unwritable = |what, expected: String, found: String| Err(TraceError::Unwritable { what, expected, found });
        for (what, found, allowed) in limits {
            if !allowed.contains(&found) {
                return unwritable(what, format!("{} to {}", allowed.start(), allowed.end()), found.to_string());
            }
        }
        if layers * experts > MOST_ALL_EXPERTS {
            return unwritable(
                "experts of all layers",
                format!("at most {MOST_ALL_EXPERTS}"),
                (layers * experts).to_string(),
            );
        }
        if let Some(layer) = self.layers.iter().find(|layer| layer.expert_bytes > MOST_EXPERT_BYTES) {
            return unwritable(
                "bytes of an expert",
                format!("at most {MOST_EXPERT_BYTES}"),
                layer.expert_bytes.to_string(),
            );
        }
        if let Some(text) = self.texts().into_iter().find(|text| text.len() > MOST_TEXT_BYTES) {
            return unwritable("a text", format!("at most {MOST_TEXT_BYTES} bytes"), text.len().to_string());
        }
        if let Some(layer) = self.layers.iter().find(|layer| layer.capacity > experts) {
            return unwritable("a capacity", format!("at most {experts}"), layer.capacity.to_string());
        }
        if let Start::Given(lists) = &self.start {
            if lists.len() != layers {
                return unwritable("lists of a start", layers.to_string(), lists.len().to_string());
            }
            for list in lists {
                if let Some(problem) = list_problem(list, experts) {
                    return unwritable("a list of a start", format!("different experts of {experts}"), problem);
                }
            }
        }
        Ok(())
    }

    pub(super) fn read<R: Read>(source: &mut Source<R>) -> Result<TraceHeader, TraceError> {
        const WHAT: &str = "the header";
        let magic = source.array(WHAT)?;
        if magic != *MAGIC {
            return Err(TraceError::NotATrace { found: magic });
        }
        let version = source.u32(WHAT)?;
        if version != VERSION {
            return Err(TraceError::Version { found: version, known: VERSION });
        }
        let contents = source.u32(WHAT)?;
        if contents & !(HAS_SCORES | HALF_PRECISION) != 0 || contents == HALF_PRECISION {
            return Err(source.malformed(4, "contents", "0, 1 or 3", contents));
        }
        let kind = match source.u32(WHAT)? {
            0 => ScoreKind::Logits,
            1 => ScoreKind::BiasedSigmoid,
            other => return Err(source.malformed(4, "kind of scores", "0 or 1", other)),
        };
        let precision = if contents & HALF_PRECISION == 0 { Precision::F32 } else { Precision::F16 };
        let scores = (contents & HAS_SCORES != 0).then_some(StoredScores { kind, precision });
        let layers = number(source, "MoE layers", 1, MOST_LAYERS)?;
        let experts = number(source, "experts", 1, MOST_EXPERTS)?;
        if layers * experts > MOST_ALL_EXPERTS {
            let expected = format!("at most {MOST_ALL_EXPERTS}");
            return Err(source.malformed(4, "experts of all layers", expected, layers * experts));
        }
        let experts_per_token = number(source, "experts per token", 1, MOST_PER_TOKEN.min(experts))?;
        let touch = match source.u32(WHAT)? {
            0 => TouchOrder::StrongFirst,
            1 => TouchOrder::WeakFirst,
            other => return Err(source.malformed(4, "touch order", "0 or 1", other)),
        };
        let start = number(source, "start", 0, 3)?;
        let (seed, fingerprint, bytes) = (source.u64(WHAT)?, source.u64(WHAT)?, source.u64(WHAT)?);
        let layer = |source: &mut Source<R>| {
            let expert_bytes = source.u64(WHAT)?;
            if expert_bytes > MOST_EXPERT_BYTES {
                let expected = format!("at most {MOST_EXPERT_BYTES}");
                return Err(source.malformed(8, "bytes of an expert", expected, expert_bytes));
            }
            let capacity = source.u64(WHAT)?;
            match usize::try_from(capacity) {
                Ok(capacity) if capacity <= experts => Ok(TraceLayer { expert_bytes, capacity }),
                _ => Err(source.malformed(8, "capacity", format!("at most {experts}"), capacity)),
            }
        };
        // Bounded: at most 4,096 layers.
        let layers: Vec<TraceLayer> = (0..layers).map(|_| layer(source)).collect::<Result<_, _>>()?;
        let start = match start {
            0 => Start::Empty,
            1 => Start::First,
            2 => Start::Random(seed),
            _ => Start::Given((0..layers.len()).map(|_| list(source, experts)).collect::<Result<_, _>>()?),
        };
        Ok(TraceHeader {
            model: TraceModel { name: text(source)?, architecture: text(source)?, fingerprint, bytes },
            layers,
            experts,
            experts_per_token,
            scores,
            policy: text(source)?,
            prompt_policy: text(source)?,
            eviction: text(source)?,
            touch,
            start,
        })
    }
}

/// Layers, N and K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) experts: usize,
    pub(super) per_token: usize,
}

fn number<R: Read>(source: &mut Source<R>, what: &'static str, least: usize, most: usize) -> Result<usize, TraceError> {
    match source.u32(what)? as usize {
        number if (least..=most).contains(&number) => Ok(number),
        other => Err(source.malformed(4, what, format!("{least} to {most}"), other)),
    }
}

/// The experts that one layer's cache starts with.
fn list<R: Read>(source: &mut Source<R>, experts: usize) -> Result<Vec<u32>, TraceError> {
    const WHAT: &str = "a list of the start";
    let count = number(source, WHAT, 0, experts)?;
    // Grows as ids come in: a count alone justifies nothing.
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(source.u32(WHAT)?);
    }
    match list_problem(&list, experts) {
        Some(problem) => Err(source.malformed(0, WHAT, format!("different experts of {experts}"), problem)),
        None => Ok(list),
    }
}

/// What is wrong with a list of experts, if anything.
fn list_problem(list: &[u32], experts: usize) -> Option<String> {
    let mut seen = vec![false; experts];
    list.iter().find_map(|&id| match seen.get_mut(id as usize) {
        Some(seen) if !*seen => {
            *seen = true;
            None
        }
        Some(_) => Some(format!("{id} twice")),
        None => Some(id.to_string()),
    })
}

fn text<R: Read>(source: &mut Source<R>) -> Result<String, TraceError> {
    const WHAT: &str = "a text of the header";
    let mut bytes = vec![0; number(source, WHAT, 0, MOST_TEXT_BYTES)?];
    source.fill(&mut bytes, WHAT)?;
    let count = bytes.len() as u64;
    String::from_utf8(bytes).map_err(|error| source.malformed(count, WHAT, "UTF-8", error.utf8_error()))
}
