//! The inside of a sandbox of the simulated cloud.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::api;
use crate::model::SandboxId;
use crate::provider::http::{Call, Http};
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, Input, Output, ProviderError, Pty,
    PtyRequest,
};

/// How long a command may take that says nothing itself.
const LIMIT: Duration = Duration::from_secs(3600);
/// More standard input than this does not fit into one request.
const STDIN_LIMIT: u64 = 200 << 20;

/// One running sandbox.
pub(super) struct SimGuest {
    pub(super) http: Http,
    pub(super) id: SandboxId,
}

impl SimGuest {
    fn call(&self, method: Method, rest: &[&str]) -> Call<'_> {
        self.http.call(method, &[&["v1", "sandboxes", &self.id.0], rest].concat())
    }

    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable { message: format!("sandbox {}", self.id), source: Some(Box::new(error)) }
    }

    async fn run(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let request = api::Exec {
            argv: command.argv.clone(),
            env: command.env.clone(),
            cwd: command.cwd.clone(),
            user: command.user.clone(),
        };
        let encoded = |error: serde_json::Error| local("send the command")(error.into());
        let mut body = serde_json::to_vec(&request).map_err(encoded)?;
        body.push(b'\n');
        let head = body.len() as u64;
        match io.stdin {
            Input::Null => 0,
            Input::Inherit => tokio::io::stdin()
                .take(STDIN_LIMIT + 1)
                .read_to_end(&mut body)
                .await
                .map_err(local("read"))?,
            Input::Reader(reader) => {
                reader.take(STDIN_LIMIT + 1).read_to_end(&mut body).await.map_err(local("read"))?
            }
        };
        if body.len() as u64 - head > STDIN_LIMIT {
            let limit = STDIN_LIMIT >> 20;
            return Err(GuestError::Unsupported(format!("more than {limit} MiB of standard input")));
        }
        let call = self.call(Method::POST, &["exec"]).timeout(LIMIT).body(body);
        let result: api::ExecResult = match call.read(&format!("run `{}`", command.program())).await {
            Ok(result) => result,
            Err(ProviderError::Invalid { message }) => {
                return Err(GuestError::Protocol { what: command.program().to_owned(), message });
            }
            Err(error) => return Err(self.unreachable(error)),
        };
        give(io.stdout, &result.stdout, &mut tokio::io::stdout()).await?;
        give(io.stderr, &result.stderr, &mut tokio::io::stderr()).await?;
        Ok(ExitStatus::Code(result.code))
    }
}

fn local(what: &'static str) -> impl Fn(std::io::Error) -> GuestError {
    move |source| GuestError::Io { what: format!("cannot {what}"), source }
}

async fn give(
    output: Output<'_>,
    text: &str,
    own: &mut (dyn tokio::io::AsyncWrite + Send + Unpin),
) -> Result<(), GuestError> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|error| GuestError::Protocol {
        what: "the output of a command".to_owned(),
        message: error.to_string(),
    })?;
    let given = match output {
        Output::Null => Ok(()),
        Output::Inherit => write(own, &bytes).await,
        Output::Writer(writer) => write(writer, &bytes).await,
    };
    given.map_err(local("write output"))
}

async fn write(to: &mut (dyn tokio::io::AsyncWrite + Send + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

#[async_trait]
impl Guest for SimGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        command.limited(self.run(command, io)).await
    }

    async fn pty(&self, _: &Command, _: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        Err(GuestError::Unsupported("a simulated sandbox has no terminal".to_owned()))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        let call = self
            .call(Method::GET, &["dial", &port.to_string()])
            .header("connection", "upgrade")
            .header("upgrade", "tcp");
        let response =
            call.send(&format!("reach port {port}")).await.map_err(|error| self.unreachable(error))?;
        let stream = response
            .upgrade()
            .await
            .map_err(|error| self.unreachable(ProviderError::transient("", error)))?;
        Ok(Box::new(stream))
    }
}
