//! Sealed values of the vault, by name. What they are sealed with is not here.

use std::collections::BTreeMap;

use rusqlite::params;

use super::{Store, StoreError};
use crate::model::Timestamp;
use crate::secret::Sealed;

/// A sealed value and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedValue {
    /// The value.
    pub sealed: Sealed,
    /// When it was first sealed under this name.
    pub created_at: Timestamp,
    /// When it was last sealed.
    pub updated_at: Timestamp,
}

impl Store {
    /// Everything that is sealed, by name.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn sealed(&self) -> Result<BTreeMap<String, SealedValue>, StoreError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT name, sealed, created_at, updated_at FROM vault")?;
            let rows = statement.query_map([], |row| {
                let value = SealedValue {
                    sealed: Sealed(row.get(1)?),
                    created_at: Timestamp(row.get(2)?),
                    updated_at: Timestamp(row.get(3)?),
                };
                Ok((row.get(0)?, value))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Keeps a sealed value; one of the same name is replaced.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn put_sealed(&self, name: &str, sealed: Sealed) -> Result<(), StoreError> {
        let (name, now) = (name.to_owned(), self.now());
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO vault (name, sealed, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)
                     ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at",
                )?
                .execute(params![name, sealed.0, now.0])?;
            Ok(())
        })
        .await
    }

    /// Forgets a sealed value; whether there was one.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn remove_sealed(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |connection| Ok(connection.execute("DELETE FROM vault WHERE name = ?1", [name])? > 0))
            .await
    }
}
