//! A tuned routing: a small JSON file, bound to a model and its capacities (docs/formats/profile.md).

use super::LayerPrice;
use crate::Error;
use moce_engine::routing::{EvictionSpec, Policy, RoutingOptions, TouchOrder};
use moce_engine::{Engine, ModelIdentity, NewFile};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the file format.
const VERSION: u32 = 2;
/// Larger files are none.
const MOST_BYTES: u64 = 1 << 20;

/// A policy with parameters, for one model at given capacities, and what it was measured to cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Profile {
    /// Of the format.
    pub(super) version: u32,
    /// The model that it belongs to.
    pub model: ModelIdentity,
    /// That model's file name, for people.
    pub model_name: String,
    /// The policy, as `--routing` takes it.
    pub routing: String,
    /// Which cached expert leaves, as `--eviction` takes it.
    pub eviction: String,
    /// In which order a token's experts become most recent, as `--touch` takes it.
    pub touch: String,
    /// How keys and values were kept, as `--kv` takes it.
    pub kv: String,
    /// Experts logically cached in each MoE layer.
    pub capacity: Vec<usize>,
    /// The rise of perplexity that was allowed, as a share.
    pub max_loss: f64,
    /// What was measured on the second half of the text.
    pub measured: Measured,
    /// What leaning costs and saves in one layer alone, on the beginning of the first half; the dearest layer first.
    pub layer_prices: Vec<LayerPrice>,
}

/// Quality and misses of a profile on text that it was not chosen on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Measured {
    /// Tokens scored.
    pub tokens: usize,
    /// Perplexity above original routing, as a share.
    pub perplexity_rise: f64,
    /// The upper end of its 95 % interval, by paired bootstrap over blocks of windows.
    pub perplexity_rise_upper: f64,
    /// Misses, as a share of the choices.
    pub miss_rate: f64,
    /// The model's own choices that did not run, as a share of the choices.
    pub changed_share: f64,
    /// Misses with original routing, the same number of experts cached in every layer, and the same eviction.
    pub original_miss_rate: f64,
}

/// What every version begins with.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Profile {
    pub(super) fn new(
        engine: &Engine,
        routing: String,
        base: &RoutingOptions,
        capacity: Vec<usize>,
        max_loss: f64,
        measured: Measured,
    ) -> Profile {
        Profile {
            version: VERSION,
            model: engine.identity(),
            model_name: engine.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            routing,
            eviction: base.eviction.to_string(),
            touch: base.touch.to_string(),
            kv: engine.plan().kv_type.to_string(),
            capacity,
            max_loss,
            measured,
            layer_prices: Vec::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no profile of this version.
    pub fn read(path: &Path) -> Result<Profile, Error> {
        let error = |cause| Error::File { path: path.to_owned(), cause };
        if std::fs::metadata(path).map_err(error)?.len() > MOST_BYTES {
            return Err(error(std::io::Error::other("is no profile: too large")));
        }
        let bytes = std::fs::read(path).map_err(error)?;
        let none = |cause| error(std::io::Error::other(format!("is no profile: {cause}")));
        let Version { version } = serde_json::from_slice(&bytes).map_err(none)?;
        if version != VERSION {
            let wrong =
                format!("is a profile of version {version}; this program knows {VERSION}: `moce tune` makes one");
            return Err(error(std::io::Error::other(wrong)));
        }
        let profile: Profile = serde_json::from_slice(&bytes).map_err(none)?;
        profile.policy()?;
        profile.eviction()?;
        profile.touch()?;
        Ok(profile)
    }

    /// Writes it to `file` and gives that its name.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, mut file: NewFile) -> std::io::Result<()> {
        serde_json::to_writer_pretty(&mut file, self)?;
        file.finish()
    }

    /// The policy.
    ///
    /// # Errors
    /// It is none that this version knows.
    pub fn policy(&self) -> Result<Policy, Error> {
        Ok(self.routing.parse::<Policy>().map_err(moce_engine::Error::from)?)
    }

    /// The eviction.
    ///
    /// # Errors
    /// It is none that this version knows.
    pub fn eviction(&self) -> Result<EvictionSpec, Error> {
        Ok(self.eviction.parse::<EvictionSpec>().map_err(moce_engine::Error::from)?)
    }

    /// The order in which a token's experts become most recent.
    ///
    /// # Errors
    /// It is none that this version knows.
    pub fn touch(&self) -> Result<TouchOrder, Error> {
        Ok(self.touch.parse::<TouchOrder>().map_err(moce_engine::Error::from)?)
    }

    /// An error if the profile belongs to another model.
    ///
    /// # Errors
    /// [`Error::OtherModel`]
    pub fn check(&self, model: ModelIdentity) -> Result<(), Error> {
        if self.model != model {
            return Err(Error::OtherModel { made_for: self.model_name.clone() });
        }
        Ok(())
    }
}
