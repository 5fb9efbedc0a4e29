//! Services, their dependencies and health checks.

use std::collections::{BTreeMap, BTreeSet};

use super::Lowering;
use crate::manifest::diagnostic::Problem;
use crate::manifest::graph;
use crate::manifest::language::scalar::{parse_port, parse_restart};
use crate::manifest::language::{HealthCheck, Sandbox, Service};
use crate::manifest::node::quote;
use crate::model::*;

impl Lowering<'_> {
    pub(super) fn services(&mut self, raw: &Sandbox) -> BTreeMap<String, ServiceSpec> {
        let names = self.services;
        let all: BTreeMap<String, ServiceSpec> = raw
            .services
            .iter()
            .map(|(name, service)| (name.clone(), self.service(name, service, raw, names)))
            .collect();
        let edges = all
            .iter()
            .map(|(n, s)| (n.as_str(), s.depends_on.keys().map(String::as_str).collect()))
            .collect();
        if let Some(cycle) = graph::cycle(&edges) {
            let path = [
                "services",
                cycle.first().copied().unwrap_or_default(),
                "depends_on",
                cycle.get(1).copied().unwrap_or_default(),
            ];
            let span = self.node.key_span(&path);
            self.push(Problem::error(
                "cycle",
                span,
                format!("services wait for one another: {}", cycle.join(" → ")),
            ));
        }
        all
    }

    fn service(
        &mut self,
        name: &str,
        raw: &Service,
        sandbox: &Sandbox,
        names: &BTreeSet<String>,
    ) -> ServiceSpec {
        let mut depends_on = BTreeMap::new();
        for (on, dependency) in &raw.depends_on {
            let path = ["services", name, "depends_on", on.as_str()];
            let condition = dependency.condition.unwrap_or_default();
            if !names.contains(on) {
                self.unknown(&path, "service", on, names.iter().map(String::as_str));
                continue;
            }
            let checked = sandbox.services.get(on).is_none_or(|s| s.healthcheck.is_some());
            if condition == DependencyCondition::Healthy && !checked {
                let problem = self
                    .error(
                        "no-healthcheck",
                        &[&path[..], &["condition"]].concat(),
                        format!("the service `{on}` has no health check, so it never becomes healthy"),
                    )
                    .help("give it a `healthcheck`, or write `condition: started`");
                self.push(problem);
            }
            depends_on.insert(on.clone(), condition);
        }
        let command: Vec<String> = raw.command.iter().map(|w| w.0.clone()).collect();
        if command.first().is_some_and(String::is_empty) {
            let problem = self.error(
                "bad-value",
                &["services", name, "command", "0"],
                "the program's name is empty".to_owned(),
            );
            self.push(problem);
        }
        let is_on_host = sandbox.base.is_none()
            && sandbox.build.is_none()
            && sandbox.snapshot.is_none()
            && sandbox.image.as_ref().is_none_or(|image| image.0 == "host");
        // One that was written and makes no sense has been told.
        let is_written = self.written.at(&["services", name, "command"]).is_some();
        if command.is_empty() && !is_written && is_on_host {
            let span = self.node.key_span(&["services", name]);
            let message =
                format!("service `{name}` has no `command`, and its sandbox no image that could have one");
            self.push(
                Problem::error("missing-key", span, message)
                    .help("write its `command`, or give the sandbox an `image`"),
            );
        }
        let stop_signal = match &raw.stop_signal {
            Some(signal) => signal.0.strip_prefix("SIG").unwrap_or(&signal.0),
            // The image says.
            None if command.is_empty() => "",
            None => "TERM",
        };
        let logs = raw.logs.as_ref();
        ServiceSpec {
            command,
            state: raw.state.unwrap_or_default(),
            working_dir: raw.working_dir.as_ref().map(|p| p.0.clone()),
            user: raw.user.as_ref().map(|u| u.0.clone()),
            env: raw.env.iter().map(|(k, v)| (k.clone(), v.0.clone())).collect(),
            depends_on,
            healthcheck: raw.healthcheck.as_ref().and_then(|h| self.healthcheck(name, h, sandbox)),
            restart: raw
                .restart
                .as_ref()
                .and_then(|r| parse_restart(&r.0).ok())
                .unwrap_or(RestartPolicy::Always),
            stop_signal: stop_signal.to_owned(),
            stop_timeout: raw.stop_timeout.unwrap_or(Duration::from_secs(10)),
            log_max_size: logs.and_then(|l| l.max_size).unwrap_or(Quantity::from_bytes(10 << 20)),
            log_max_files: logs.and_then(|l| l.max_files).unwrap_or(3),
        }
    }

    fn healthcheck(
        &mut self,
        service: &str,
        raw: &HealthCheck,
        sandbox: &Sandbox,
    ) -> Option<crate::model::HealthCheck> {
        let at = ["services", service, "healthcheck"];
        let present = [raw.tcp.is_some(), raw.http.is_some(), raw.exec.is_some()];
        if !self.exactly_one(&at, &["tcp", "http", "exec"], &present, true) {
            return None;
        }
        let interval = raw.interval.unwrap_or(Duration::from_secs(10));
        let timeout = raw.timeout.unwrap_or(Duration::from_secs(5));
        for (key, value) in [("interval", interval), ("timeout", timeout)] {
            if value.as_millis() == 0 {
                let problem = self.error(
                    "bad-value",
                    &[&at[..], &[key]].concat(),
                    format!("`{key}` is zero, so the check can never pass"),
                );
                self.push(problem.expected("a duration above zero"));
            }
        }
        if timeout > interval && raw.timeout.is_some() {
            let span = self.node.span_at(&[&at[..], &["timeout"]].concat());
            self.push(Problem::warning(
                "healthcheck",
                span,
                format!("a probe may take {timeout} but the next is due after {interval}"),
            ));
        }
        let probed = [
            raw.tcp.as_ref().map(|port| (&["tcp"][..], port)),
            raw.http.as_ref().map(|http| (&["http", "port"][..], &http.port)),
        ];
        for (key, port) in probed.into_iter().flatten() {
            let declared = sandbox.ports.get(&port.0);
            if declared.is_some_and(|declared| declared.protocol == Some(PortProtocol::Udp)) {
                let message =
                    format!("the port {} is declared as `udp`, and this check connects to it", port.0);
                self.push(
                    Problem::warning("healthcheck", self.node.span_at(&[&at[..], key].concat()), message)
                        .help("ask the service by a command: `exec`"),
                );
            }
        }
        let probe = if let Some(port) = &raw.tcp {
            Probe::Tcp(parse_port(&port.0).ok()?)
        } else if let Some(http) = &raw.http {
            let path = http.path.as_ref().map_or("/", |p| p.0.as_str());
            if !path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' ') {
                let problem = self
                    .error(
                        "bad-value",
                        &[&at[..], &["http", "path"]].concat(),
                        format!("{} is not the path of a URL", quote(path)),
                    )
                    .expected("a path that begins with `/`, such as `/healthz`");
                self.push(problem);
                return None;
            }
            Probe::Http { port: parse_port(&http.port.0).ok()?, path: path.to_owned() }
        } else {
            Probe::Exec(raw.exec.as_ref()?.iter().map(|w| w.0.clone()).collect())
        };
        Some(crate::model::HealthCheck {
            probe,
            interval,
            timeout,
            retries: raw.retries.unwrap_or(3),
            start_period: raw.start_period.unwrap_or_default(),
        })
    }
}
