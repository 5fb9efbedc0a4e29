//! How people name sandboxes and services on the command line.

use crate::model::Address;

/// What a name on the command line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The sandbox: its name, or its id at the provider.
    pub sandbox: String,
    /// The service in it, if one is named.
    pub service: Option<String>,
}

/// Reads `api`, `api/web`, `sandbox/api`, `sandbox/api/service/web` or a provider's id.
pub fn parse_target(text: &str) -> Target {
    match text.parse::<Address>() {
        Ok(Address::Service(sandbox, service)) => Target { sandbox, service: Some(service) },
        Ok(address) if address.sandbox().is_some() => {
            Target { sandbox: address.sandbox().unwrap_or_default().to_owned(), service: None }
        }
        _ => match text.split_once('/') {
            Some((sandbox, service)) if !service.is_empty() => {
                Target { sandbox: sandbox.to_owned(), service: Some(service.to_owned()) }
            }
            _ => Target { sandbox: text.to_owned(), service: None },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_naming_is_read() {
        let service = Target { sandbox: "api".to_owned(), service: Some("web".to_owned()) };
        assert_eq!(parse_target("api/web"), service);
        assert_eq!(parse_target("sandbox/api/service/web"), service);
        for text in ["api", "sandbox/api"] {
            assert_eq!(parse_target(text), Target { sandbox: "api".to_owned(), service: None });
        }
    }
}
