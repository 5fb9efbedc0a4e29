//! Numbers about the controller, in the text form of Prometheus.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Bounds of the histograms, in seconds.
const BOUNDS: [f64; 12] = [0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// What kind of thing is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Kind {
    /// One word.
    pub kind: String,
}

/// How a sandbox fares.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Health {
    /// Its health, in one word.
    pub state: String,
}

/// Numbers about the controller.
pub(super) struct Metrics {
    registry: Registry,
    /// Projects that are due and not worked on.
    pub depth: Gauge,
    /// How long projects were due before they were worked on.
    pub latency: Histogram,
    /// How long reconciling a project took.
    pub reconcile: Histogram,
    /// How often a remote was asked what a ref is at.
    pub polls: Counter<u64, AtomicU64>,
    /// How often something was fetched.
    pub fetches: Counter<u64, AtomicU64>,
    /// Failures.
    pub errors: Family<Kind, Counter>,
    /// Sandboxes by health.
    pub sandboxes: Family<Health, Gauge>,
    /// Tries to tell others how projects fare.
    pub notifications: Family<Kind, Counter>,
    /// Projects by phase.
    pub projects: Family<Kind, Gauge>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pocketenv");
        let metrics = Self {
            depth: Gauge::default(),
            latency: Histogram::new(BOUNDS),
            reconcile: Histogram::new(BOUNDS),
            polls: Counter::default(),
            fetches: Counter::default(),
            errors: Family::default(),
            sandboxes: Family::default(),
            notifications: Family::default(),
            projects: Family::default(),
            registry: Registry::default(),
        };
        registry.register("queue_depth", "Projects that are due and not worked on", metrics.depth.clone());
        registry.register(
            "queue_latency_seconds",
            "How long projects were due before they were worked on",
            metrics.latency.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "How long reconciling a project took",
            metrics.reconcile.clone(),
        );
        registry.register("source_polls", "How often a remote was asked for its ref", metrics.polls.clone());
        registry.register("source_fetches", "How often something was fetched", metrics.fetches.clone());
        registry.register("errors", "Failures by kind", metrics.errors.clone());
        registry.register("sandboxes", "Sandboxes by health, as last measured", metrics.sandboxes.clone());
        registry.register(
            "notifications",
            "Tries to tell others how projects fare, by how they ended",
            metrics.notifications.clone(),
        );
        registry.register("projects", "Projects by phase", metrics.projects.clone());
        Self { registry, ..metrics }
    }

    /// Counts a failure.
    pub fn error(&self, kind: &str) {
        self.errors.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// Counts a try to tell somebody.
    pub fn notified(&self, kind: &str) {
        self.notifications.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// All of them as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
