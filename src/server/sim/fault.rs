//! What can go wrong, and the manners of the cloud: one flat list of settings `[OPERATION.]NAME = VALUE`, the same on the command line, in a file and
//! over HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::chance::Draw;
use crate::model::Duration;

/// What a client can ask for; the first part of a setting's name where it is for one operation only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A new sandbox.
    Create,
    /// A page of the listing, of sandboxes or volumes.
    List,
    /// One sandbox.
    Get,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Delete it.
    Delete,
    /// Change its name, labels or spec.
    Update,
    /// Run something inside.
    Exec,
    /// Reach a port inside.
    Dial,
    /// Make or delete a volume.
    Volume,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Create,
        Self::List,
        Self::Get,
        Self::Start,
        Self::Stop,
        Self::Delete,
        Self::Update,
        Self::Exec,
        Self::Dial,
        Self::Volume,
    ];

    /// Its name in settings and in the history.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::List => "list",
            Self::Get => "get",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Update => "update",
            Self::Exec => "exec",
            Self::Dial => "dial",
            Self::Volume => "volume",
        }
    }
}

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// Always this long.
    Fixed(Duration),
    /// Anything in between.
    Uniform(Duration, Duration),
    /// Mostly short, seldom long; the mean. Never longer than ten times it.
    Exponential(Duration),
}

impl Default for Latency {
    fn default() -> Self {
        Self::Fixed(Duration::default())
    }
}

impl Latency {
    /// One length in milliseconds.
    pub fn sample(self, draw: Draw, question: &str) -> f64 {
        match self {
            Self::Fixed(length) => length.as_millis() as f64,
            Self::Uniform(low, high) => {
                let (low, high) = (low.as_millis() as f64, high.as_millis() as f64);
                low + (high - low) * draw.unit(question)
            }
            Self::Exponential(mean) => {
                let mean = mean.as_millis() as f64;
                (-mean * (1.0 - draw.unit(question)).ln()).min(mean * 10.0)
            }
        }
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = |text: &str| text.parse::<Duration>().map_err(|error| error.to_string());
        match text.split_once(':') {
            None => duration(text).map(Self::Fixed),
            Some(("uniform", range)) => {
                let (low, high) = range.split_once("..").ok_or("expected `uniform:LOW..HIGH`")?;
                let (low, high) = (duration(low)?, duration(high)?);
                if low > high {
                    return Err(format!("`{low}` is longer than `{high}`"));
                }
                Ok(Self::Uniform(low, high))
            }
            Some(("exponential", mean)) => duration(mean).map(Self::Exponential),
            Some((other, _)) => {
                Err(format!("`{other}` is no distribution; expected `uniform` or `exponential`"))
            }
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Uniform(low, high) => write!(f, "uniform:{low}..{high}"),
            Self::Exponential(mean) => write!(f, "exponential:{mean}"),
        }
    }
}

/// How a 429 says when to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryAfter {
    /// Not at all.
    #[default]
    None,
    /// In seconds.
    Seconds(Duration),
    /// As an HTTP date.
    Date(Duration),
}

impl FromStr for RetryAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = |text: &str| text.parse::<Duration>().map_err(|error| error.to_string());
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            Some(("seconds", after)) => duration(after).map(Self::Seconds),
            Some(("date", after)) => duration(after).map(Self::Date),
            _ => Err("expected `none`, `seconds:DURATION` or `date:DURATION`".to_owned()),
        }
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Seconds(after) => write!(f, "seconds:{after}"),
            Self::Date(after) => write!(f, "date:{after}"),
        }
    }
}

/// What stopping a sandbox means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopManner {
    /// The disk is kept.
    #[default]
    Suspend,
    /// The disk is lost, and what dies is gone.
    Destroy,
}

impl FromStr for StopManner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "suspend" => Ok(Self::Suspend),
            "destroy" => Ok(Self::Destroy),
            _ => Err("expected `suspend` or `destroy`".to_owned()),
        }
    }
}

impl fmt::Display for StopManner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Suspend => "suspend",
            Self::Destroy => "destroy",
        })
    }
}

/// A number in `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Probability(pub f64);

impl FromStr for Probability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(p) if (0.0..=1.0).contains(&p) => Ok(Self(p)),
            _ => Err("expected a probability from 0 to 1".to_owned()),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A length of time with a sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset(pub i64);

impl FromStr for Offset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (sign, length) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text),
        };
        let length: Duration = length.parse().map_err(|error| format!("{error}"))?;
        Ok(Self(sign * i64::try_from(length.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}", Duration::from_millis(self.0.unsigned_abs()))
    }
}

/// A factor by which time runs faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed(pub f64);

impl Default for Speed {
    fn default() -> Self {
        Self(1.0)
    }
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(factor) if (0.001..=1_000_000.0).contains(&factor) => Ok(Self(factor)),
            _ => Err("expected a factor from 0.001 to 1000000".to_owned()),
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Calls a second; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate(pub f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(rate) if (0.0..=1_000_000.0).contains(&rate) => Ok(Self(rate)),
            _ => Err("expected a number of calls a second from 0 to 1000000".to_owned()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Declares a struct of settings with its names, so that reading, writing and documentation cannot fall apart.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            const NAMES: &[&str] = &[$(stringify!($field)),*];

            /// Sets one; `None` if there is none of this name.
            fn set(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
                match name {
                    $(stringify!($field) => Some(match value.parse::<$type>() {
                        Ok(value) => {
                            self.$field = value;
                            Ok(())
                        }
                        Err(error) => Err(error.to_string()),
                    }),)*
                    _ => None,
                }
            }

            fn write(&self, prefix: &str, to: &mut BTreeMap<String, String>) {
                $(to.insert(format!("{prefix}{}", stringify!($field)), self.$field.to_string());)*
            }
        }
    };
}

settings! {
    /// What can go wrong with one request.
    OfOperation {
        /// How long an answer takes.
        latency: Latency = Latency::default(),
        /// 429, before anything happens.
        throttle: Probability = Probability(0.0),
        /// 503, before anything happens.
        error_before: Probability = Probability(0.0),
        /// 500, after it has happened.
        error_after: Probability = Probability(0.0),
        /// The connection is cut before anything happens.
        cut_before: Probability = Probability(0.0),
        /// The connection is cut after it has happened.
        cut_after: Probability = Probability(0.0),
        /// The most calls a second of this operation, as of all together.
        rate: Rate = Rate(0.0),
        /// How a 429 says when to come back.
        retry_after: RetryAfter = RetryAfter::None,
        /// How long creating, starting, stopping and deleting takes after the answer.
        transition: Latency = Latency::default(),
        /// Such a transition is stuck, …
        stuck: Probability = Probability(0.0),
        /// … for so long.
        stuck_for: Duration = Duration::from_secs(60),
    }
}

settings! {
    /// What can go wrong with the cloud, and its manners.
    OfCloud {
        /// Objects carry labels; otherwise a name is all there is.
        labels: bool = true,
        /// The listing filters by labels; otherwise whoever asks has to.
        label_filter: bool = true,
        /// An idempotency key makes one sandbox of two creates.
        idempotent_create: bool = true,
        /// The spec is given back.
        read_back: bool = true,
        /// What stopping means.
        stop: StopManner = StopManner::Suspend,
        /// The longest page of a listing.
        page: usize = 1000,
        /// The most sandboxes at once; 0 for no limit.
        quota: usize = 0,
        /// The most calls a second of all operations together, and at once after a second without; the others are answered with 429.
        rate: Rate = Rate(0.0),
        /// The most calls that a client should have under way.
        concurrency: usize = 16,
        /// A sandbox is gone this long after its creation; 0 for never.
        ttl: Duration = Duration::default(),
        /// Listings show what was so long ago.
        lag: Duration = Duration::default(),
        /// A listing loses the contents of a page.
        miss_page: Probability = Probability(0.0),
        /// A creation ends in a failed sandbox.
        fail_create: Probability = Probability(0.0),
        /// A delete is refused with 409.
        refuse_delete: Probability = Probability(0.0),
        /// A sandbox dies on its own after a start, …
        death: Probability = Probability(0.0),
        /// … after so long.
        death_after: Latency = Latency::Exponential(Duration::from_secs(10)),
        /// A service ends with 1 once after its start, and its restart policy decides.
        service_crash: Probability = Probability(0.0),
        /// A preset's step ends with 1.
        step_failure: Probability = Probability(0.0),
        /// What a command that the simulator does not know exits with.
        command_exit: i32 = 127,
        /// Its clock differs from ours by so much.
        clock_offset: Offset = Offset(0),
        /// Every length of time above is divided by this.
        speed: Speed = Speed::default(),
    }
}

/// All settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Those of the cloud.
    pub cloud: OfCloud,
    operations: [OfOperation; Operation::ALL.len()],
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{name}={value}`: {problem}")]
pub struct SettingError {
    /// Its name as given.
    pub name: String,
    /// Its value as given.
    pub value: String,
    /// What is wrong.
    pub problem: String,
}

impl Settings {
    /// The settings of one operation.
    pub fn of(&self, operation: Operation) -> &OfOperation {
        &self.operations[operation as usize]
    }

    /// Sets `NAME` or `OPERATION.NAME`. A name of an operation's setting without the operation sets it for all.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let result = match name.split_once('.') {
            Some((operation, rest)) => match Operation::ALL.iter().find(|o| o.name() == operation) {
                Some(operation) => self.operations[*operation as usize].set(rest, value),
                None => None,
            },
            None => self.cloud.set(name, value).or_else(|| {
                let all = self.operations.iter_mut().map(|o| o.set(name, value));
                all.reduce(|one, other| Some(one?.and(other?)))?
            }),
        };
        let problem = match result {
            Some(Ok(())) => return Ok(()),
            Some(Err(problem)) => problem,
            None => format!("there is no such setting{}", close(name)),
        };
        Err(SettingError { name: name.to_owned(), value: value.to_owned(), problem })
    }

    /// Sets all of a list; on an error none.
    pub fn set_all<'a>(
        &mut self,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), SettingError> {
        let mut next = self.clone();
        for (name, value) in settings {
            next.set(name, value)?;
        }
        *self = next;
        Ok(())
    }

    /// All settings as they are.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        self.cloud.write("", &mut map);
        for operation in Operation::ALL {
            self.of(operation).write(&format!("{}.", operation.name()), &mut map);
        }
        map
    }

    /// A length of time, in milliseconds, as fast as this cloud runs.
    pub fn scaled(&self, ms: f64) -> i64 {
        // Lengths are at most ten years, so the rounding is exact enough and the cast cannot overflow.
        (ms / self.cloud.speed.0).round() as i64
    }

    /// [`Self::scaled`] of a duration.
    pub fn scaled_duration(&self, duration: Duration) -> i64 {
        self.scaled(duration.as_millis() as f64)
    }
}

/// The nearest setting, as a hint.
fn close(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let names = OfCloud::NAMES.iter().chain(OfOperation::NAMES);
    let best =
        names.map(|known| (strsim::jaro_winkler(known, last), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, known)) if likeness > 0.8 => format!("; did you mean `{known}`?"),
        _ => String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_read_back() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("latency", "uniform:5ms..20ms"),
            ("create.error_after", "0.25"),
            ("retry_after", "date:3s"),
            ("clock_offset", "-1h"),
            ("stop", "destroy"),
            ("transition", "exponential:2s"),
        ] {
            settings.set(name, value).unwrap();
        }
        assert_eq!(settings.of(Operation::List).latency.to_string(), "uniform:5ms..20ms");
        assert_eq!(settings.of(Operation::Create).error_after, Probability(0.25));
        assert_eq!(settings.of(Operation::Get).error_after, Probability(0.0));
        let mut again = Settings::default();
        let map = settings.to_map();
        again.set_all(map.iter().map(|(n, v)| (n.as_str(), v.as_str()))).unwrap();
        assert_eq!(again, settings);
    }

    #[test]
    fn a_wrong_setting_says_what_is_wrong_and_changes_nothing() {
        let mut settings = Settings::default();
        let error = settings.set_all([("quota", "5"), ("throtle", "0.5")]).unwrap_err();
        assert!(error.to_string().contains("did you mean `throttle`"), "{error}");
        assert_eq!(settings, Settings::default());
        for (name, value) in
            [("throttle", "1.5"), ("latency", "fast"), ("fly.latency", "1s"), ("latency", "uniform:2s..1s")]
        {
            assert!(settings.set(name, value).is_err(), "{name}={value}");
        }
    }
}
