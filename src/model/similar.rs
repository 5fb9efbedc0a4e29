//! Did you mean …?

/// The known name nearest to `typed`, if one is near enough to be meant. Case does not count.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    // Two letters of three must be right, else anything is near.
    let limit = (typed.chars().count() / 3).min(3);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&typed, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("imgae", ["image", "env"]), Some("image"));
        assert_eq!(nearest("wbe", ["web", "db"]), Some("web"));
        assert_eq!(nearest("Ports", ["ports"]), Some("ports"));
        assert_eq!(nearest("zzz", ["image", "env"]), None);
    }
}
