//! How many experts are logically cached in each layer.

use crate::Error;

/// A capacity as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Capacity {
    /// The same number in every layer.
    Experts(usize),
    /// A share of each layer's experts, rounded down, at least K.
    Share(f64),
    /// A number for each MoE layer.
    PerLayer(Vec<usize>),
}

impl Capacity {
    /// The number for each layer: 0, or `per_token` to the layer's number of experts.
    ///
    /// # Errors
    /// A number is outside that, or there is not one for each layer.
    pub fn resolve(&self, experts: &[usize], per_token: usize) -> Result<Vec<usize>, Error> {
        let wanted: Vec<usize> = match self {
            Capacity::Experts(count) => vec![*count; experts.len()],
            Capacity::Share(share) => experts.iter().map(|&n| ((n as f64 * share) as usize).max(per_token)).collect(),
            Capacity::PerLayer(counts) if counts.len() == experts.len() => counts.clone(),
            Capacity::PerLayer(counts) => {
                return Err(Error::CapacityLayers { given: counts.len(), layers: experts.len() });
            }
        };
        for (layer, (&wanted, &experts)) in wanted.iter().zip(experts).enumerate() {
            if wanted != 0 && !(per_token..=experts).contains(&wanted) {
                return Err(Error::CapacityRange { layer, wanted, least: per_token, most: experts });
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_down_but_never_below_k() {
        assert_eq!(Capacity::Share(0.5).resolve(&[60, 7], 4).unwrap(), [30, 4]);
        assert_eq!(Capacity::Share(0.01).resolve(&[60], 4).unwrap(), [4]);
    }

    #[test]
    fn capacities_that_cannot_be_are_refused() {
        assert!(Capacity::Experts(3).resolve(&[60], 4).is_err());
        assert!(Capacity::Experts(61).resolve(&[60], 4).is_err());
        assert!(Capacity::PerLayer(vec![4]).resolve(&[60, 60], 4).is_err());
        assert_eq!(Capacity::PerLayer(vec![0, 60]).resolve(&[60, 60], 4).unwrap(), [0, 60]);
    }
}
