//! Where declared ports are reached: one address each, chosen once and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::Error;
use crate::manifest::DeclaredPort;
use crate::model::{PortRef, labels, sha256_hex};
use crate::provider::Registry;
use crate::reconcile::observe::Listings;
use crate::store::Store;

/// Ports are chosen from here: above what services of the system use, below what Linux gives to outgoing connections (32768 and up).
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;
/// How many are tried for one declared port.
const CANDIDATES: u16 = 200;

/// The address of every declared port that is known: of those forwarded from this host, and of those that a provider reports.
pub(super) async fn endpoints(
    store: &Store,
    project: &str,
    declared: &[DeclaredPort],
    registry: &Registry,
    listings: &Listings,
    keep: bool,
) -> Result<BTreeMap<PortRef, (String, u16)>, Error> {
    let reported = reported(listings);
    let mut known = store.ports(project).await?;
    let mut endpoints = BTreeMap::new();
    for declared in declared {
        let forwards = registry.get(&declared.provider).is_some_and(|p| p.capabilities().forwards_from_host);
        if !forwards {
            if let Some(endpoint) = reported.get(&declared.port_ref) {
                endpoints.insert(declared.port_ref.clone(), endpoint.clone());
            }
            continue;
        }
        let host_port = match declared.host_port {
            Some(port) => port,
            None => choose(store, project, declared, &mut known, &reported, keep).await?,
        };
        endpoints.insert(declared.port_ref.clone(), (Ipv4Addr::LOCALHOST.to_string(), host_port));
    }
    Ok(endpoints)
}

/// What the providers say now, by sandbox name and port.
fn reported(listings: &Listings) -> BTreeMap<PortRef, (String, u16)> {
    let sandboxes = listings.values().filter_map(|l| l.complete()).flat_map(|p| p.sandboxes.values());
    sandboxes
        .filter_map(|s| Some((s.labels.get(labels::ADDRESS)?.strip_prefix("sandbox/")?, s)))
        .flat_map(|(name, s)| {
            s.endpoints.iter().map(move |(port, endpoint)| {
                let port = PortRef { sandbox: name.to_owned(), port: *port };
                (port, (endpoint.host.clone(), endpoint.port))
            })
        })
        .collect()
}

async fn choose(
    store: &Store,
    project: &str,
    declared: &DeclaredPort,
    known: &mut BTreeMap<PortRef, u16>,
    reported: &BTreeMap<PortRef, (String, u16)>,
    keep: bool,
) -> Result<u16, Error> {
    if let Some(port) = known.get(&declared.port_ref) {
        return Ok(*port);
    }
    let taken: BTreeSet<u16> = known.values().copied().collect();
    let candidates: Vec<u16> = match reported.get(&declared.port_ref) {
        // A lost store learns the address from the sandbox that has it.
        Some((_, port)) => vec![*port],
        None => {
            candidates(project, &declared.port_ref).filter(|p| !taken.contains(p) && is_free(*p)).collect()
        }
    };
    let port = match (keep, candidates.first()) {
        (false, Some(first)) => *first,
        _ => store.allocate_port(project, &declared.port_ref, candidates).await?,
    };
    known.insert(declared.port_ref.clone(), port);
    Ok(port)
}

/// The same declared port gets the same candidates on every machine, so that addresses seldom differ.
fn candidates(project: &str, port: &PortRef) -> impl Iterator<Item = u16> + use<> {
    let digest = sha256_hex(format!("{project}/{}/{}", port.sandbox, port.port).as_bytes());
    let start = u32::from_str_radix(&digest[..6], 16).unwrap_or(0);
    (0..u32::from(CANDIDATES)).map(move |n| {
        let offset = (start + n) % u32::from(COUNT);
        FIRST + u16::try_from(offset).unwrap_or(0)
    })
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}
