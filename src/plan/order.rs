//! Dependency order.

use std::collections::{BTreeMap, BTreeSet};

/// The nodes of `edges` (node → what it needs) so that each stands after what it needs; among equals, by name. Needs that are no nodes are
/// ignored. `Err` holds the nodes of one cycle, in order.
pub fn topological<K: Ord + Clone>(edges: &BTreeMap<K, BTreeSet<K>>) -> Result<Vec<K>, Vec<K>> {
    let mut missing: BTreeMap<&K, usize> = BTreeMap::new();
    let mut needed_by: BTreeMap<&K, Vec<&K>> = BTreeMap::new();
    for (node, needs) in edges {
        let known = needs.iter().filter(|n| edges.contains_key(n));
        let mut count = 0;
        for need in known {
            needed_by.entry(need).or_default().push(node);
            count += 1;
        }
        missing.insert(node, count);
    }
    let mut ready: BTreeSet<&K> = missing.iter().filter(|(_, c)| **c == 0).map(|(n, _)| *n).collect();
    let mut sorted = Vec::with_capacity(edges.len());
    while let Some(node) = ready.pop_first() {
        sorted.push(node.clone());
        for dependent in needed_by.remove(node).unwrap_or_default() {
            if let Some(count) = missing.get_mut(dependent) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(dependent);
                }
            }
        }
    }
    if sorted.len() == edges.len() {
        return Ok(sorted);
    }
    Err(cycle(edges, &sorted.into_iter().collect()))
}

/// Follows needs among the nodes that could not be sorted until one repeats.
fn cycle<K: Ord + Clone>(edges: &BTreeMap<K, BTreeSet<K>>, sorted: &BTreeSet<K>) -> Vec<K> {
    let mut walk: Vec<K> = Vec::new();
    let mut next = edges.keys().find(|k| !sorted.contains(k));
    while let Some(node) = next {
        if let Some(start) = walk.iter().position(|seen| seen == node) {
            return walk.split_off(start);
        }
        walk.push(node.clone());
        next = edges
            .get(node)
            .and_then(|needs| needs.iter().find(|need| edges.contains_key(need) && !sorted.contains(need)));
    }
    walk
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn edges(list: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        list.iter()
            .map(|(n, needs)| ((*n).to_owned(), needs.iter().map(|s| (*s).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn needs_come_first_and_names_break_ties() {
        let order = topological(&edges(&[("c", &["a"]), ("a", &[]), ("b", &["x"]), ("d", &["c", "b"])]));
        assert_eq!(order.unwrap(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_cycle_is_named() {
        let found = topological(&edges(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]));
        let mut found = found.unwrap_err();
        found.sort();
        assert_eq!(found, ["b", "c"]);
    }
}
