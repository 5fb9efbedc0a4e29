//! Did you mean …?

use crate::model::nearest;

/// What to say about a name that is not known: the nearest, else all of them if they are few.
pub fn unknown<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const FEW: usize = 12;
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(word) = nearest(typed, known.iter().copied()) {
        return Some(format!("did you mean `{word}`?"));
    }
    match known.as_slice() {
        [] => None,
        few if few.len() <= FEW => Some(format!("there are: {}", few.join(", "))),
        many => Some(format!("there are {}; `pocketenv status -o name` lists them", many.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_suggested_or_the_few_there_are() {
        assert_eq!(unknown("wbe", ["web", "db"]).as_deref(), Some("did you mean `web`?"));
        assert_eq!(unknown("zzz", ["web", "db"]).as_deref(), Some("there are: web, db"));
        assert_eq!(unknown("zzz", []), None);
    }
}
