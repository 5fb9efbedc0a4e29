//! Sizes in bytes as a manifest writes them: `512MiB`, `4GiB`, `2GB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. It reads `512MiB`, `4GiB`, `10GB`, `1024` and prints in the largest binary unit that is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u64);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl Quantity {
    /// A quantity of `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many bytes as people read them: a whole number of at least 10, or less than the next unit, rounded up.
    pub fn rounded(bytes: u64) -> Self {
        let unit = UNITS[..4].iter().find(|(_, unit)| bytes >= 10 * unit).map_or(1, |(_, unit)| *unit);
        Self(bytes.div_ceil(unit).saturating_mul(unit))
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

/// The text is not a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a size; expected a whole number with a unit, such as `512MiB`, `4GiB` or `10GB`")]
pub struct ParseQuantityError(pub String);

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseQuantityError(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| bad())?;
        let factor = match &text[digits..] {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = UNITS
            .iter()
            .take(4)
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl Serialize for Quantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A size: a whole number with a unit, such as `512MiB`, `4GiB` or `10GB`.",
            "pattern": "^[0-9]+(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$"
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_binary_and_decimal_units() {
        assert_eq!("512MiB".parse::<Quantity>().unwrap().as_bytes(), 512 << 20);
        assert_eq!("2GB".parse::<Quantity>().unwrap().as_bytes(), 2_000_000_000);
        assert_eq!("4096MiB".parse::<Quantity>().unwrap().to_string(), "4GiB");
        for (bytes, text) in
            [(5, "5B"), (7_700_480, "7520KiB"), (64 << 20, "64MiB"), ((11 << 30) + 1, "12GiB")]
        {
            assert_eq!(Quantity::rounded(bytes).to_string(), text);
        }
        for text in ["", "GiB", "1.5GiB", "-1B", "4 GiB", "4gb", "99999999999TiB"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
