//! Capacities by layer, by marginal gain.

/// Capacities, as shares of the wanted one, at which misses are measured for [`allocate`].
pub(super) const CURVE_SHARES: [f64; 5] = [0.5, 0.75, 1.0, 1.25, 1.5];

/// Spreads the memory that `capacity` takes over the layers by marginal gain: `curves` has measured (capacity, misses) points of each layer,
/// taken as straight between them, `bytes` the size of its experts. A slot costs as many bytes as a miss reads, so that misses a slot are
/// what counts. Greedy is exact where the curves are convex (their lower convex hull is used) and sizes equal.
pub(super) fn allocate(curves: &[Vec<(usize, f64)>], bytes: &[u64], capacity: &[usize], least: usize) -> Vec<usize> {
    let hulls: Vec<Vec<(usize, f64)>> = curves.iter().map(|curve| hull(curve)).collect();
    let lowest = |hull: &Vec<(usize, f64)>| hull.first().map_or(least, |point| point.0.max(least));
    let mut slots: Vec<usize> = hulls.iter().map(lowest).collect();
    let memory = |slots: &[usize]| slots.iter().zip(bytes).map(|(&slots, bytes)| slots as u64 * bytes).sum::<u64>();
    let limit = memory(capacity);
    let gain = |layer: usize, slots: usize| {
        let segment = hulls[layer].windows(2).find(|points| slots >= points[0].0 && slots < points[1].0)?;
        Some((segment[0].1 - segment[1].1) / (segment[1].0 - segment[0].0) as f64)
    };
    let mut taken = memory(&slots);
    loop {
        let fits = |layer: &usize| taken + bytes[*layer] <= limit;
        let gains = (0..slots.len()).filter(fits).filter_map(|layer| Some((layer, gain(layer, slots[layer])?)));
        let Some((layer, _)) = gains.max_by(|one, other| one.1.total_cmp(&other.1)) else { break };
        slots[layer] += 1;
        taken += bytes[layer];
    }
    // More was asked for than the curves reach, or less than their beginnings need: as it was.
    let smallest = bytes.iter().copied().min().unwrap_or(0);
    if taken <= limit && taken + smallest > limit { slots } else { capacity.to_vec() }
}

/// The lower convex hull of points with ascending first coordinates; misses that rise with the capacity are taken as level.
fn hull(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let mut hull: Vec<(usize, f64)> = Vec::new();
    for &(x, y) in points {
        if hull.last().is_some_and(|last| last.0 == x) {
            continue;
        }
        let y = hull.last().map_or(y, |last| y.min(last.1));
        let slope = |from: (usize, f64), to: (usize, f64)| (to.1 - from.1) / (to.0 - from.0) as f64;
        while hull.len() >= 2
            && slope(hull[hull.len() - 2], hull[hull.len() - 1]) >= slope(hull[hull.len() - 1], (x, y))
        {
            hull.pop();
        }
        hull.push((x, y));
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_where_they_save_most() {
        let steep = vec![(4, 100.0), (8, 20.0), (12, 0.0)];
        let flat = vec![(4, 10.0), (8, 8.0), (12, 7.0)];
        assert_eq!(allocate(&[steep.clone(), flat.clone()], &[1, 1], &[8, 8], 4), [12, 4]);
        assert_eq!(allocate(&[flat.clone(), flat.clone()], &[1, 1], &[8, 8], 4).iter().sum::<usize>(), 16);
        // Beyond what was measured nothing is promised.
        assert_eq!(allocate(&[steep.clone(), flat.clone()], &[1, 1], &[20, 20], 4), [20, 20]);
        // Slots of the layer with larger experts make room for fewer of the other: 8 · 2 + 8 · 3 bytes.
        assert_eq!(allocate(&[steep.clone(), flat.clone()], &[2, 3], &[8, 8], 4), [12, 5]);
        assert_eq!(allocate(&[flat, steep], &[2, 3], &[8, 8], 4), [5, 10]);
    }

    #[test]
    fn hulls_are_convex() {
        assert_eq!(hull(&[(1, 10.0), (2, 9.0), (3, 2.0), (4, 3.0)]), [(1, 10.0), (3, 2.0), (4, 2.0)]);
        assert_eq!(hull(&[(4, 1.0), (4, 1.0)]), [(4, 1.0)]);
    }
}
