//! The inside of a sandbox of the world, reached as any provider's is.

use async_trait::async_trait;
use pocketenv::model::*;
use pocketenv::provider::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::inside::Inside;
use crate::schedule::Fault;
use crate::world::{Client, State, transient};

/// The inside of one sandbox, seen from outside.
pub struct Within {
    pub client: Client,
    pub id: SandboxId,
}

impl Within {
    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable { message: self.id.to_string(), source: Some(Box::new(error)) }
    }

    async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inside, bool) -> T + Send + 'static,
    ) -> Result<T, GuestError> {
        let id = self.id.clone();
        let effect = move |state: &mut State, provider: &str, fault: Option<Fault>| {
            let sandbox = state.living(provider, &id)?;
            if sandbox.state != SandboxState::Running {
                return Err(transient("it does not run"));
            }
            if !sandbox.is_ours() {
                state.violated(format!("the inside of {id} of others is touched"));
                return Err(transient("it is not yours"));
            }
            Ok(work(&mut sandbox.inside, matches!(fault, Some(Fault::Fails))))
        };
        self.client.call(|_, _| {}, effect).await.map_err(|error| self.unreachable(error))
    }
}

#[async_trait]
impl Guest for Within {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let mut stdin = Vec::new();
        if let Input::Reader(reader) = io.stdin {
            reader.read_to_end(&mut stdin).await.unwrap();
        }
        let argv = command.argv.clone();
        let ended = self.inside(move |inside, fails| inside.exec(&argv, &stdin, fails));
        let ended = match command.timeout {
            None => ended.await?,
            Some(limit) => tokio::time::timeout(limit, ended)
                .await
                .map_err(|_| GuestError::TimedOut { program: command.program().to_owned(), limit })??,
        };
        for (output, text) in [(io.stdout, &ended.stdout), (io.stderr, &ended.stderr)] {
            if let Output::Writer(writer) = output {
                writer.write_all(text.as_bytes()).await.unwrap();
            }
        }
        Ok(ExitStatus::Code(ended.code))
    }

    async fn pty(&self, _: &Command, _: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        Err(GuestError::Unsupported("no terminal".to_owned()))
    }

    async fn dial(&self, _: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        let listens = |inside: &mut Inside, _| inside.services.values().any(|(_, state)| *state == "running");
        if self.inside(listens).await? {
            return Ok(Box::new(tokio::io::duplex(64).0));
        }
        Err(GuestError::NotReady { what: "the connection was refused".to_owned(), output: String::new() })
    }
}
