//! Named sets of settings: weather, and the documented manners of vendors.

/// A profile.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// What it is, in one sentence.
    pub summary: &'static str,
    /// What it sets, in order.
    pub settings: &'static [(&'static str, &'static str)],
}

/// The profile of this name.
pub fn find(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// All of them. Vendors' manners are as their documentation had them in November 2026; numbers are of the usual plan.
pub static PROFILES: &[Profile] = &[
    Profile { name: "calm", summary: "nothing goes wrong, and nothing takes time", settings: &[] },
    Profile {
        name: "slow",
        summary: "nothing goes wrong; answers and transitions take as long as at a usual cloud",
        settings: &[("latency", "uniform:60ms..250ms"), ("transition", "uniform:500ms..3s")],
    },
    Profile {
        name: "stormy",
        summary: "a bad day: every tenth request fails, answers are lost, listings lag, some things are slow",
        settings: &[
            ("latency", "exponential:80ms"),
            ("throttle", "0.04"),
            ("retry_after", "seconds:1s"),
            ("error_before", "0.03"),
            ("error_after", "0.02"),
            ("cut_before", "0.02"),
            ("cut_after", "0.02"),
            ("lag", "2s"),
            ("transition", "exponential:1s"),
            ("stuck", "0.02"),
            ("stuck_for", "8s"),
            ("refuse_delete", "0.1"),
        ],
    },
    Profile {
        name: "hostile",
        summary: "worse than any cloud should be: no idempotent create, pages are lost, sandboxes die, the clock is wrong",
        settings: &[
            ("idempotent_create", "false"),
            ("latency", "exponential:150ms"),
            ("throttle", "0.08"),
            ("error_before", "0.05"),
            ("error_after", "0.05"),
            ("cut_before", "0.05"),
            ("cut_after", "0.05"),
            ("lag", "4s"),
            ("miss_page", "0.05"),
            ("transition", "exponential:2s"),
            ("stuck", "0.05"),
            ("stuck_for", "15s"),
            ("fail_create", "0.03"),
            ("refuse_delete", "0.2"),
            ("death", "0.05"),
            ("death_after", "exponential:20s"),
            ("service_crash", "0.1"),
            ("clock_offset", "-90m"),
        ],
    },
    Profile {
        name: "e2b",
        summary: "E2B: metadata, Idempotency-Key, pages of 100, pause keeps the disk, killed after its timeout, 20 at once",
        settings: &[
            ("page", "100"),
            ("quota", "20"),
            ("ttl", "1h"),
            ("retry_after", "seconds:1s"),
            ("rate", "650"),
            ("create.rate", "1"),
            ("latency", "uniform:60ms..200ms"),
            ("transition", "uniform:150ms..600ms"),
        ],
    },
    Profile {
        name: "daytona",
        summary: "Daytona: labels, no idempotency key, transitions are seen from outside, pages of 200, stop keeps the disk",
        settings: &[
            ("idempotent_create", "false"),
            ("page", "200"),
            ("retry_after", "seconds:2s"),
            ("latency", "uniform:80ms..300ms"),
            ("transition", "uniform:500ms..4s"),
            ("refuse_delete", "0.02"),
        ],
    },
    Profile {
        name: "vercel",
        summary: "Vercel Sandbox: tags, no idempotency key, at most 45 minutes, a stop keeps a snapshot, 429 with a long Retry-After",
        settings: &[
            ("idempotent_create", "false"),
            ("page", "100"),
            ("ttl", "45m"),
            ("retry_after", "seconds:20s"),
            ("latency", "uniform:80ms..250ms"),
            ("transition", "uniform:300ms..2s"),
        ],
    },
    Profile {
        name: "modal",
        summary: "Modal: tags, terminate is the only stop and loses the disk, a hard timeout of at most a day, UNAVAILABLE now and then",
        settings: &[
            ("stop", "destroy"),
            ("ttl", "1d"),
            ("read_back", "false"),
            ("page", "100"),
            ("error_before", "0.01"),
            ("latency", "uniform:50ms..200ms"),
            ("transition", "uniform:500ms..3s"),
        ],
    },
    Profile {
        name: "sprites",
        summary: "Sprites: names only and a prefix to filter by, the spec cannot be read back, suspends on its own",
        settings: &[
            ("labels", "false"),
            ("idempotent_create", "false"),
            ("read_back", "false"),
            ("page", "50"),
            ("retry_after", "seconds:10s"),
            ("latency", "uniform:60ms..250ms"),
            ("transition", "uniform:200ms..1500ms"),
        ],
    },
    Profile {
        name: "deno",
        summary: "Deno Sandbox: few labels, no stop but the end, dies with its timeout",
        settings: &[
            ("stop", "destroy"),
            ("labels", "false"),
            ("idempotent_create", "false"),
            ("read_back", "false"),
            ("ttl", "30m"),
            ("latency", "uniform:60ms..200ms"),
            ("transition", "uniform:150ms..500ms"),
        ],
    },
    Profile {
        name: "runloop",
        summary: "Runloop: metadata that the listing does not filter by, long pages, suspend and resume, provisioning takes its time",
        settings: &[
            ("label_filter", "false"),
            ("idempotent_create", "false"),
            ("read_back", "false"),
            ("page", "5000"),
            ("latency", "uniform:80ms..300ms"),
            ("transition", "uniform:1s..8s"),
        ],
    },
    Profile {
        name: "hopx",
        summary: "Hopx: names only, pages of 100, rate limits that say in the answer when to come back",
        settings: &[
            ("labels", "false"),
            ("idempotent_create", "false"),
            ("read_back", "false"),
            ("page", "100"),
            ("retry_after", "seconds:2s"),
            ("throttle", "0.02"),
            ("latency", "uniform:60ms..250ms"),
            ("transition", "uniform:100ms..800ms"),
        ],
    },
    Profile {
        name: "blaxel",
        summary: "Blaxel: labels that the listing does not filter by, unique names instead of keys, standby keeps everything",
        settings: &[
            ("label_filter", "false"),
            ("idempotent_create", "false"),
            ("page", "200"),
            ("latency", "uniform:50ms..200ms"),
            ("transition", "uniform:300ms..3s"),
        ],
    },
    Profile {
        name: "cloudflare",
        summary: "Cloudflare Sandbox by its bridge: an id and nothing else, no stop but the end, empty after ten minutes; that it cannot list is left out",
        settings: &[
            ("stop", "destroy"),
            ("labels", "false"),
            ("idempotent_create", "false"),
            ("read_back", "false"),
            ("ttl", "10m"),
            ("error_before", "0.01"),
            ("latency", "uniform:50ms..200ms"),
            ("transition", "uniform:1s..4s"),
        ],
    },
    Profile {
        name: "kubernetes",
        summary: "agent-sandbox on Kubernetes: labels and the spec are read back, a name is taken once, deletion takes its grace period",
        settings: &[
            ("page", "500"),
            ("latency", "uniform:5ms..40ms"),
            ("transition", "uniform:1s..6s"),
            ("lag", "200ms"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sim::Settings;

    #[test]
    fn every_profile_can_be_set() {
        for profile in PROFILES {
            let result = Settings::default().set_all(profile.settings.iter().copied());
            assert_eq!(result, Ok(()), "{}", profile.name);
        }
        assert!(find("stormy").is_some() && find("sunny").is_none());
    }
}
