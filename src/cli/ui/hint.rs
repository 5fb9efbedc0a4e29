//! Did you mean …?

/// The known word that is most like what was typed, if one is like it at all.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One slip in a short word, one in three characters of a long one; beyond it suggestions are guesses.
    let enough = (typed.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(typed, word), word))
        .filter(|(distance, _)| *distance <= enough)
        .min()
        .map(|(_, word)| word)
}

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
