//! Chance from a seed: the same seed, operation, subject and count give the same answer, whatever threads do.

use std::collections::HashMap;

use crate::model::sha256_hex;

/// A source of chance. Each subject of each operation has its own count, so that requests about different subjects do not disturb each other.
#[derive(Debug)]
pub struct Chance {
    seed: u64,
    counts: HashMap<u64, u32>,
}

/// The chance of one request: every question about it has its own answer.
#[derive(Clone, Copy, Debug)]
pub struct Draw(u64);

impl Chance {
    /// Chance from a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, counts: HashMap::new() }
    }

    /// The chance of the next request of this operation about this subject.
    pub fn next(&mut self, operation: &str, subject: &str) -> Draw {
        let key = mix(hash(self.seed, operation), subject);
        let count = self.counts.entry(key).or_default();
        *count += 1;
        Draw(finish(key ^ u64::from(*count).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// An identifier for the next object that is made for this subject.
    pub fn id(&mut self, prefix: &str, subject: &str) -> String {
        let draw = self.next("id", subject);
        format!("{prefix}{}", &sha256_hex(&draw.0.to_le_bytes())[..16])
    }
}

impl Draw {
    /// A number in `0.0..1.0` for one question.
    pub fn unit(self, question: &str) -> f64 {
        let bits = finish(mix(self.0, question)) >> 11;
        // 53 bits are exact in a double.
        bits as f64 / (1_u64 << 53) as f64
    }

    /// Whether something of this probability happens.
    pub fn happens(self, question: &str, probability: f64) -> bool {
        self.unit(question) < probability
    }
}

fn hash(seed: u64, text: &str) -> u64 {
    mix(finish(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)), text)
}

/// FNV-1a over the text and an end mark, from a state.
fn mix(state: u64, text: &str) -> u64 {
    text.bytes()
        .chain([0xff])
        .fold(state, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The last step of splitmix64, which spreads every bit over all.
fn finish(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_chance_and_subjects_do_not_disturb_each_other() {
        let alone: Vec<f64> = {
            let mut chance = Chance::new(7);
            (0..100).map(|_| chance.next("create", "a").unit("x")).collect()
        };
        let mut chance = Chance::new(7);
        let beside: Vec<f64> = (0..100)
            .map(|_| {
                chance.next("create", "b");
                chance.next("get", "a");
                chance.next("create", "a").unit("x")
            })
            .collect();
        assert_eq!(alone, beside);
        assert_ne!(alone[0], Chance::new(8).next("create", "a").unit("x"));
    }

    #[test]
    fn probabilities_are_what_they_say() {
        let mut chance = Chance::new(1);
        let n = 20_000;
        let hits = (0..n).filter(|_| chance.next("op", "s").happens("q", 0.2)).count();
        assert!((3_800..4_200).contains(&hits), "{hits} of {n}");
        let mut chance = Chance::new(1);
        let hits = (0..n).filter(|i| chance.next("op", &format!("s{i}")).happens("q", 0.2)).count();
        assert!((3_800..4_200).contains(&hits), "{hits} of {n}");
    }
}
