//! Host ports: chosen once for each declared port and kept until that is forgotten, so that an address stays the same.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::inventory::ensure_project;
use super::{Store, StoreError};
use crate::model::PortRef;

impl Store {
    /// The host port of a declared port: the one it has, else the first of `candidates` that no declared port of any project
    /// has. Whether a candidate is free on the host is for the caller to know.
    ///
    /// # Errors
    /// [`StoreError::NoFreePort`] if every candidate is taken.
    pub async fn allocate_port(
        &self,
        project: &str,
        port: &PortRef,
        candidates: Vec<u16>,
    ) -> Result<u16, StoreError> {
        let (project, port, now) = (project.to_owned(), port.clone(), self.now());
        self.write(move |connection| {
            let existing = connection
                .prepare_cached(
                    "SELECT host_port FROM ports WHERE project = ?1 AND sandbox = ?2 AND port = ?3",
                )?
                .query_row(params![project, port.sandbox, port.port], |row| row.get(0))
                .optional()?;
            if let Some(host_port) = existing {
                return Ok(host_port);
            }
            ensure_project(connection, &project, now)?;
            let mut insert = connection.prepare_cached(
                "INSERT INTO ports (project, sandbox, port, host_port) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (host_port) DO NOTHING",
            )?;
            for candidate in candidates {
                if insert.execute(params![project, port.sandbox, port.port, candidate])? == 1 {
                    return Ok(candidate);
                }
            }
            Err(StoreError::NoFreePort { sandbox: port.sandbox, port: port.port }.into())
        })
        .await
    }

    /// The host ports of a project's declared ports.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn ports(&self, project: &str) -> Result<BTreeMap<PortRef, u16>, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| {
            let mut statement =
                connection.prepare_cached("SELECT sandbox, port, host_port FROM ports WHERE project = ?1")?;
            let ports = statement
                .query_map([project], |row| {
                    Ok((PortRef { sandbox: row.get(0)?, port: row.get(1)? }, row.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            Ok(ports)
        })
        .await
    }

    /// Lets the ports of sandbox `from` follow it to its new name `to`.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn move_ports(&self, project: &str, from: &str, to: &str) -> Result<(), StoreError> {
        let (project, from, to) = (project.to_owned(), from.to_owned(), to.to_owned());
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "UPDATE OR REPLACE ports SET sandbox = ?3 WHERE project = ?1 AND sandbox = ?2",
                )?
                .execute(params![project, from, to])?;
            Ok(())
        })
        .await
    }

    /// Gives up the host port of a declared port, if it has one, for example because another program took it.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn release_port(&self, project: &str, port: &PortRef) -> Result<(), StoreError> {
        let (project, port) = (project.to_owned(), port.clone());
        self.write(move |connection| {
            connection
                .prepare_cached("DELETE FROM ports WHERE project = ?1 AND sandbox = ?2 AND port = ?3")?
                .execute(params![project, port.sandbox, port.port])?;
            Ok(())
        })
        .await
    }
}
