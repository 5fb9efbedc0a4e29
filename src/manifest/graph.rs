//! Cycles in what depends on what.

use std::collections::BTreeMap;

/// The first cycle found, as a path that ends where it began; `edges` go from a thing to what it depends on.
pub(crate) fn cycle<'a>(edges: &BTreeMap<&'a str, Vec<&'a str>>) -> Option<Vec<&'a str>> {
    let mut done: BTreeMap<&str, bool> = BTreeMap::new();
    for start in edges.keys() {
        if done.contains_key(start) {
            continue;
        }
        // Depth first without recursion: a chain of dependencies may be as long as the manifest.
        let mut path: Vec<(&'a str, usize)> = vec![(start, 0)];
        done.insert(start, false);
        while let Some((node, next)) = path.last_mut() {
            let Some(target) = edges.get(node).and_then(|t| t.get(*next)).copied() else {
                done.insert(node, true);
                path.pop();
                continue;
            };
            *next += 1;
            match done.get(target) {
                Some(true) => {}
                Some(false) => {
                    let from = path.iter().position(|(n, _)| *n == target).unwrap_or(0);
                    let mut found: Vec<&str> = path.iter().skip(from).map(|(n, _)| *n).collect();
                    found.push(target);
                    return Some(found);
                }
                None => {
                    done.insert(target, false);
                    path.push((target, 0));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_cycle_and_shows_it() {
        let edges =
            BTreeMap::from([("a", vec!["b"]), ("b", vec!["d", "c"]), ("c", vec!["b"]), ("d", vec![])]);
        assert_eq!(cycle(&edges), Some(vec!["b", "c", "b"]));
        let edges = BTreeMap::from([("a", vec!["b", "c"]), ("b", vec!["c"]), ("c", vec![])]);
        assert_eq!(cycle(&edges), None);
        assert_eq!(cycle(&BTreeMap::from([("a", vec!["a"])])), Some(vec!["a", "a"]));
    }
}
