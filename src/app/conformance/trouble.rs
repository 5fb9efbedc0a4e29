//! A service in trouble: it refuses, fails before or after the work, is slow, or its answers break off.
//!
//! A [`Front`] stands before the service for one case. What the service itself holds is asked for past it.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::bench::{Bench, Doing as _, Failure, check, output, script, sh, shown};
use super::front::{Call, Fault, Front};
use super::inside::{LONG, ends};
use super::{Need, Verdict, group};
use crate::model::{ObservedProvider, SandboxId};
use crate::provider::{
    CapturedOutput, Command, ExecIo, Guest, GuestError, Owner, Provider, ProviderError, capture,
};

group! {
    "service/unauthorised": "a refusal with 401 or 403 is told as that, and nothing is made, lost or taken for gone", [Need::Service], unauthorised;
    "service/not-found": "404 makes no listing empty, and a create that meets it fails for good", [Need::Service], not_found;
    "service/conflict": "409 makes no listing empty, and a create that meets it made nothing", [Need::Service], conflict;
    "service/throttled": "429 is told as that, with how long to wait where the service says so, and then the call succeeds", [Need::Service], throttled;
    "service/fails-before": "a call that fails with 5xx is tried again, and nothing was made before", [Need::Service], fails_before;
    "service/fails-after": "a call that fails with 5xx when its work is done is settled, and nothing exists twice", [Need::Service], fails_after;
    "service/cut": "a connection that breaks off before, after or in the middle is an error that is tried again, and nothing exists twice",
        [Need::Service], cut;
    "service/slow": "an answer that comes slowly is whole", [Need::Service], slow;
    "service/given-up": "calls that are given up in the middle hold nothing up, and nothing exists twice", [Need::Service], given_up;
    "service/output-cut": "output that breaks off is an error, and the command ends", [Need::Service, Need::Processes], output_cut;
    "service/output-slow": "output that comes slowly is whole", [Need::Service, Need::Processes], output_slow;
    "service/command-refused": "a command that is refused is an error that can be tried again", [Need::Service, Need::Processes], command_refused;
    "service/command-given-up": "a command that is given up while nothing is heard of it ends", [Need::Service, Need::Processes], command_given_up;
}

/// How long one call may take: what hangs is found.
const ATTEMPT: Duration = Duration::from_secs(90);
/// How long the front asks to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often something is tried: a service may have trouble of its own.
const TRIES: usize = 3;
/// A fault for every call.
const EVERY: usize = usize::MAX;

/// A provider whose service is in trouble.
struct Trouble<'a> {
    bench: &'a Bench,
    front: Arc<Front>,
    provider: Arc<dyn Provider>,
}

/// A short word of what was answered.
fn told<T: Debug>(answer: &T) -> String {
    shown(format!("{answer:?}").as_bytes())
}

fn is_unauthorised<T>(answer: &Result<T, ProviderError>) -> bool {
    matches!(answer, Err(ProviderError::Unauthorised { .. }))
}

fn is_retryable<T>(answer: &Result<T, ProviderError>) -> bool {
    answer.as_ref().is_err_and(ProviderError::is_retryable)
}

impl<'a> Trouble<'a> {
    async fn new(bench: &'a Bench) -> Result<Self, Failure> {
        let none = || Failure::Broken("the sheet has a service, and the provider has none".to_owned());
        let service = bench.provider().service().ok_or_else(none)?;
        let front = Arc::new(Front::new(service.calls()));
        let provider = service.behind(Arc::clone(&front) as Arc<_>)?;
        let trouble = Self { bench, front, provider };
        bench.answer(|| trouble.list()).await.doing("listing by way of the front")?;
        Ok(trouble)
    }

    async fn list(&self) -> Result<ObservedProvider, ProviderError> {
        let project = Some(self.bench.project().to_owned());
        self.provider.list(&Owner { project, owner: None }).await
    }

    /// What an attempt answers while the next calls of a kind meet a fault, and how many there were.
    async fn during<F: Future>(
        &self,
        (call, fault, times): (Call, Fault, usize),
        attempt: F,
    ) -> Result<(F::Output, Vec<Instant>), Failure> {
        self.front.tell(call, fault, times);
        let answer = timeout(ATTEMPT, attempt).await;
        let met = self.front.relent();
        match answer {
            Ok(answer) => Ok((answer, met)),
            Err(_) => Err(Failure::Broken(format!("{call:?}, {fault:?}: it does not end"))),
        }
    }

    /// While calls of a kind meet a fault, an attempt has to answer what is `right`.
    async fn expect<T: Debug, E: Debug, F: Future<Output = Result<T, E>>>(
        &self,
        (call, fault): (Call, Fault),
        attempt: impl Fn() -> F,
        right: impl Fn(&Result<T, E>) -> bool,
    ) -> Verdict {
        let mut seen = String::new();
        for _ in 0..TRIES {
            let (answer, met) = self.during((call, fault, EVERY), attempt()).await?;
            if !met.is_empty() && right(&answer) {
                return Ok(());
            }
            let asked = if met.is_empty() { "the service was not asked, and the answer is" } else { "" };
            seen = format!("{call:?}, {fault:?}: {asked} {}", told(&answer));
        }
        Err(Failure::Broken(seen))
    }

    /// A create that meets a fault has to fail in the `right` way and to make nothing.
    async fn refuses_to_create(
        &self,
        fault: Fault,
        right: impl Fn(&Result<SandboxId, ProviderError>) -> bool,
    ) -> Verdict {
        let (spec, identity) = (self.bench.spec("refused"), self.bench.identity("refused"));
        let create = || self.provider.create(&spec, &identity);
        self.expect((Call::Create, fault), create, right).await?;
        self.bench.none_was_made(&identity).await
    }

    /// A create of which the answer is lost is tried again, and makes one.
    async fn creates_once(&self, name: &str, fault: Fault) -> Verdict {
        let (spec, identity) = (self.bench.spec(name), self.bench.identity(name));
        let create = self.provider.create(&spec, &identity);
        let (answer, met) = self.during((Call::Create, fault, 1), create).await?;
        check(!met.is_empty(), || format!("{fault:?}: the service was not asked for a create"))?;
        // A provider may find by itself what was made.
        let fine = answer.is_ok() || is_retryable(&answer);
        check(fine, || format!("a create, {fault:?}: {}", told(&answer)))?;
        let id = self.bench.create_again(&*self.provider, &spec, &identity).await?;
        self.bench.one_of_a_kind(&identity).await.doing(format!("a create, {fault:?}, again"))?;
        self.bench.delete(&id).await
    }

    /// A get that fails says nothing of what it is about.
    async fn get_fails(&self, id: &SandboxId, fault: Fault) -> Verdict {
        let failed = |answer: &Result<_, ProviderError>| answer.is_err();
        self.expect((Call::Get, fault), || self.provider.get(id), failed).await
    }

    async fn command(
        &self,
        fault: Fault,
        command: &Command,
        right: impl Fn(&Result<CapturedOutput, GuestError>) -> bool,
    ) -> Verdict {
        let guest = self.inside().await?;
        let attempt = || capture(&*guest, command, &[], 4 << 20);
        self.expect((Call::Exec, fault), attempt, right).await
    }

    /// The inside of the sandbox that cases share, by way of the front.
    async fn inside(&self) -> Result<Box<dyn Guest>, Failure> {
        let id = self.bench.shared().await?;
        self.bench.answer(|| self.provider.guest(&id)).await.doing("reaching the inside")
    }
}

async fn unauthorised(bench: &Bench) -> Verdict {
    let id = bench.create("unauthorised").await?;
    let trouble = Trouble::new(bench).await?;
    for status in [401, 403] {
        let fault = Fault::Refused(status, None);
        trouble.expect((Call::List, fault), || trouble.list(), is_unauthorised).await?;
        trouble.expect((Call::Get, fault), || trouble.provider.get(&id), is_unauthorised).await?;
        trouble.refuses_to_create(fault, is_unauthorised).await?;
        trouble.expect((Call::Delete, fault), || trouble.provider.delete(&id), is_unauthorised).await?;
    }
    bench.runs(&id, "after its deletion was refused").await
}

async fn not_found(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    let fault = Fault::Refused(404, None);
    trouble.expect((Call::List, fault), || trouble.list(), Result::is_err).await?;
    let final_one = |answer: &Result<_, ProviderError>| answer.as_ref().is_err_and(|e| !e.is_retryable());
    trouble.refuses_to_create(fault, final_one).await
}

async fn conflict(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    let fault = Fault::Refused(409, None);
    trouble.expect((Call::List, fault), || trouble.list(), Result::is_err).await?;
    let in_the_way = |answer: &Result<_, ProviderError>| match answer {
        // What has the name may be on its way: then it is looked at again.
        Err(ProviderError::AlreadyExists { .. } | ProviderError::Transient { .. }) => true,
        _ => false,
    };
    trouble.refuses_to_create(fault, in_the_way).await
}

async fn throttled(bench: &Bench) -> Verdict {
    let says = bench.provider().service().is_some_and(|service| service.calls().retry_after);
    for asked in [None, Some(RETRY_AFTER)] {
        let fault = Fault::Refused(429, asked);
        let expected = asked.filter(|_| says);
        let as_asked = |answer: &Result<_, ProviderError>| match answer {
            Err(ProviderError::Throttled { retry_after }) => *retry_after == expected,
            _ => false,
        };
        // An account keeps the pause, so each has one of its own.
        let trouble = Trouble::new(bench).await?;
        trouble.expect((Call::List, fault), || trouble.list(), as_asked).await?;
        let trouble = Trouble::new(bench).await?;
        let (spec, identity) = (bench.spec("throttled"), bench.identity("throttled"));
        let create = bench.answer(|| trouble.provider.create(&spec, &identity));
        let (made, met) = trouble.during((Call::Create, fault, 2), create).await?;
        let id = made.doing(format!("a create that is told twice to wait ({fault:?})"))?;
        bench.remember(&id);
        check(met.len() > 2, || format!("it was asked for {} times", met.len()))?;
        let waited = met[1].duration_since(met[0]);
        check(waited >= expected.unwrap_or_default(), || {
            format!("it was asked again after {waited:?}, and told to wait {expected:?}")
        })?;
        bench.one_of_a_kind(&identity).await?;
        bench.delete(&id).await?;
    }
    Ok(())
}

async fn fails_before(bench: &Bench) -> Verdict {
    let id = bench.create("fails").await?;
    let trouble = Trouble::new(bench).await?;
    for status in [500, 502, 503, 504] {
        let fault = Fault::Refused(status, None);
        trouble.expect((Call::List, fault), || trouble.list(), is_retryable).await?;
        trouble.get_fails(&id, fault).await?;
        trouble.refuses_to_create(fault, is_retryable).await?;
        trouble.expect((Call::Delete, fault), || trouble.provider.delete(&id), is_retryable).await?;
    }
    bench.runs(&id, "after its deletion failed").await?;
    let delete = bench.answer(|| trouble.provider.delete(&id));
    let (deleted, _) = trouble.during((Call::Delete, Fault::Refused(503, None), 2), delete).await?;
    deleted.doing("a deletion that fails twice")?;
    let (spec, identity) = (bench.spec("fails-twice"), bench.identity("fails-twice"));
    let create = bench.answer(|| trouble.provider.create(&spec, &identity));
    let (made, met) = trouble.during((Call::Create, Fault::Refused(503, None), 2), create).await?;
    bench.remember(&made.doing("a create that fails twice")?);
    check(met.len() > 2, || format!("it was asked for {} times", met.len()))?;
    bench.one_of_a_kind(&identity).await
}

async fn fails_after(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    trouble.creates_once("fails-after", Fault::Failed(503)).await?;
    deleted_once(bench, &trouble, Fault::Failed(503)).await
}

/// A deletion of which the answer is lost is tried again, and the sandbox is gone.
async fn deleted_once(bench: &Bench, trouble: &Trouble<'_>, fault: Fault) -> Verdict {
    let id = bench.create("deleted").await?;
    let (answer, met) = trouble.during((Call::Delete, fault, 1), trouble.provider.delete(&id)).await?;
    check(!met.is_empty(), || format!("{fault:?}: the service was not asked for a deletion"))?;
    check(answer.is_ok() || is_retryable(&answer), || format!("a deletion, {fault:?}: {}", told(&answer)))?;
    bench.answer(|| trouble.provider.delete(&id)).await.doing(format!("a deletion, {fault:?}, again"))?;
    let found = bench.get(&id).await?;
    check(found.is_none(), || format!("after a deletion, {fault:?}, it is still there"))
}

async fn cut(bench: &Bench) -> Verdict {
    let id = bench.create("cut").await?;
    let trouble = Trouble::new(bench).await?;
    for fault in [Fault::Closed, Fault::Lost, Fault::Cut(0), Fault::Cut(5)] {
        trouble.expect((Call::List, fault), || trouble.list(), is_retryable).await?;
        trouble.get_fails(&id, fault).await?;
    }
    trouble.refuses_to_create(Fault::Closed, is_retryable).await?;
    trouble.creates_once("lost", Fault::Lost).await?;
    trouble.creates_once("cut-off", Fault::Cut(1)).await?;
    deleted_once(bench, &trouble, Fault::Lost).await
}

async fn slow(bench: &Bench) -> Verdict {
    let id = bench.create("slow").await?;
    bench
        .eventually(bench.settle(), || async {
            let listing = bench.listed(bench.project()).await?;
            let shown = listing.sandboxes.contains_key(&id);
            Ok(if shown { Ok(()) } else { Err("the listing does not show it".to_owned()) })
        })
        .await?;
    let trouble = Trouble::new(bench).await?;
    let whole = |answer: &Result<ObservedProvider, ProviderError>| {
        answer.as_ref().is_ok_and(|listing| listing.sandboxes.contains_key(&id))
    };
    trouble.expect((Call::List, Fault::Slow), || trouble.list(), whole).await
}

async fn given_up(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    let listed = async || {
        let listed = timeout(ATTEMPT, bench.answer(|| trouble.list())).await;
        let listed = listed.map_err(|_| Failure::Broken("a listing after that does not end".to_owned()))?;
        listed.doing("a listing after that").map(drop)
    };
    trouble.until_held(Call::List, trouble.list()).await?;
    listed().await?;
    let (spec, identity) = (bench.spec("given-up"), bench.identity("given-up"));
    trouble.until_held(Call::Create, trouble.provider.create(&spec, &identity)).await?;
    listed().await?;
    let id = bench.create_again(&*trouble.provider, &spec, &identity).await?;
    bench.one_of_a_kind(&identity).await?;
    trouble.until_held(Call::Delete, trouble.provider.delete(&id)).await?;
    bench.answer(|| trouble.provider.delete(&id)).await.doing("a deletion that was given up, again")?;
    let found = bench.get(&id).await?;
    check(found.is_none(), || "after a deletion that was given up it is still there".to_owned())
}

impl Trouble<'_> {
    /// Gives a call up when the service has done it and is not heard of.
    async fn until_held<T: Debug>(&self, call: Call, attempt: impl Future<Output = T>) -> Verdict {
        let held = self.front.tell(call, Fault::Held, EVERY);
        let done = tokio::select! {
            () = held.notified() => Ok(()),
            answer = attempt => Err(format!("{call:?} without an answer: {}", told(&answer))),
            () = tokio::time::sleep(ATTEMPT) => Err(format!("{call:?}: the service is not asked")),
        };
        self.front.relent();
        done.map_err(Failure::Broken)
    }
}

/// What is done inside: much output at once.
fn download() -> Command {
    script("head -c 262144 /dev/zero | tr '\\0' x", [])
}

async fn output_cut(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    const FILE: &str = "/tmp/conformance-cut";
    let inside = bench.inside().await?;
    for kept in [0, 1000] {
        sh(&*inside, "rm -f \"$1\"", [FILE]).await?;
        let text = format!("printf %4000s begun; {LONG}");
        trouble.command(Fault::Cut(kept), &script(&text, [FILE]), Result::is_err).await?;
        ends(bench, &*inside, FILE)
            .await
            .doing(format!("a command whose output breaks off after {kept} bytes"))?;
    }
    let (pause, short) =
        (script("printf %2000s begun; sleep 2; printf %2000s ended", []), script("sleep 1", []));
    trouble.command(Fault::Cut(1000), &pause, Result::is_err).await?;
    trouble.command(Fault::Cut(100_000), &download(), Result::is_err).await?;
    trouble.command(Fault::Cut(0), &short, Result::is_err).await
}

async fn output_slow(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    let whole = output(&*bench.inside().await?, &download()).await?;
    check(whole.stdout.len() == 262_144, || {
        format!("there are {} bytes without a fault", whole.stdout.len())
    })?;
    trouble
        .command(Fault::Slow, &download(), |answer| answer.as_ref().is_ok_and(|found| *found == whole))
        .await
}

async fn command_refused(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    let again =
        |answer: &Result<CapturedOutput, GuestError>| answer.as_ref().is_err_and(GuestError::is_retryable);
    for fault in [401, 404, 409, 500, 503].map(|status| Fault::Refused(status, None)) {
        trouble.command(fault, &script(":", []), again).await?;
    }
    trouble.command(Fault::Closed, &script(":", []), again).await?;
    // What was refused leaves nothing that stands in the way.
    let guest = trouble.inside().await?;
    let found = sh(&*guest, "echo works", []).await?;
    check(found == "works", || format!("a command after that says {found:?}"))
}

async fn command_given_up(bench: &Bench) -> Verdict {
    let trouble = Trouble::new(bench).await?;
    const FILE: &str = "/tmp/conformance-unheard";
    let (guest, inside) = (trouble.inside().await?, bench.inside().await?);
    sh(&*inside, "rm -f \"$1\"", [FILE]).await?;
    let command = script(LONG, [FILE]);
    trouble.until_held(Call::Exec, guest.exec(&command, ExecIo::default())).await?;
    ends(bench, &*inside, FILE).await?;
    // It does not begin later either.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ends(bench, &*inside, FILE).await
}
