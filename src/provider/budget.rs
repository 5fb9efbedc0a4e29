//! How many calls an account takes, learned from what it refuses, and whose call goes next.
//!
//! An account is one service and one credential. Everything in this process that calls it shares its budget: a pause that one answer asks for is
//! kept by all, and those who wait take turns by client, so that a project with many calls does not starve one with few. As long as
//! nothing is refused nothing is held back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A share of refused calls that says that we are too fast; less may be the provider's own trouble.
const TOO_MANY: f64 = 0.1;
/// How much of what was taken is asked for after that.
const CAUTION: f64 = 0.9;
/// Of a rate at which little was refused, so much is kept.
const EASE: f64 = 0.95;
/// The growth far from the rate at which something was last refused, and near it.
const FAST: f64 = 1.25;
const SLOW: f64 = 1.02;
/// The slowest rate, in calls a second.
const LEAST: f64 = 1.0;
/// A rate that limits nobody.
const BOUNDLESS: f64 = 2000.0;
/// A rate is judged by at least so many calls, …
const CALLS: u32 = 20;
/// … over at least so long, …
const SPAN: Duration = Duration::from_secs(1);
/// … but after so long by what there is, …
const LONGEST: Duration = Duration::from_secs(10);
/// … and at once where a lot was refused within this time.
const SHORTEST: Duration = Duration::from_millis(250);
/// Refusals that are a lot.
const LOT: u32 = 4;
/// Between calls this far apart nothing was asked for: such time does not count.
const IDLE: Duration = Duration::from_millis(250);
/// So much of a second's calls may go at once.
const BURST: f64 = 0.1;
/// Who would have to wait longer than this because the account is closed is told so instead: it may have better things to do, or be called off.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an account takes, as far as is known. Time is an argument.
#[derive(Clone, Debug)]
struct Budget {
    /// Calls a second; `None` while nothing was refused.
    rate: Option<f64>,
    /// What was taken while something was refused.
    ceiling: f64,
    /// No call goes before.
    closed_until: Instant,
    /// When the next call would go that keeps the pace.
    next: Instant,
    last: Instant,
    window: Window,
}

/// What is counted since the rate was last judged.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// The time in which calls were made or held back.
    busy: Duration,
    accepted: u32,
    refused: u32,
    /// Whether a call had to wait for the rate.
    waited: bool,
}

impl Budget {
    fn new(now: Instant) -> Self {
        let window = Window::default();
        Self { rate: None, ceiling: 0.0, closed_until: now, next: now, last: now, window }
    }

    /// How long until a call may go.
    fn pause(&mut self, now: Instant) -> Duration {
        let pace = self.next.saturating_duration_since(now);
        self.window.waited |= !pace.is_zero();
        pace.max(self.closed_until.saturating_duration_since(now))
    }

    /// For how long nothing may go, if that is long.
    fn open_soon(&self, now: Instant) -> Result<(), Duration> {
        let closed = self.closed_until.saturating_duration_since(now);
        if closed > PATIENCE { Err(closed) } else { Ok(()) }
    }

    /// A call goes.
    fn sent(&mut self, now: Instant) {
        self.pass(now);
        if let Some(rate) = self.rate {
            let saved = now.checked_sub(Duration::from_secs_f64(BURST)).unwrap_or(now);
            self.next = self.next.max(saved) + Duration::from_secs_f64(1.0 / rate);
        }
    }

    /// A call was answered with anything but a refusal.
    fn accepted(&mut self, now: Instant) {
        self.pass(now);
        self.window.accepted += 1;
        self.judge();
    }

    /// A call was refused because there were too many, and until when nothing is to be asked, if that was said.
    fn refused(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.pass(now);
        self.window.refused += 1;
        if let Some(pause) = retry_after {
            self.closed_until = self.closed_until.max(now + pause);
        }
        self.judge();
    }

    /// Counts the time since the last thing that happened, but for what was idle. A pause that was asked for counts: meanwhile the account earns
    /// new calls.
    fn pass(&mut self, now: Instant) {
        let pace = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(2.0 / rate));
        let closed = self.closed_until.saturating_duration_since(self.last);
        self.window.busy += now.saturating_duration_since(self.last).min(IDLE.max(pace).max(closed));
        self.last = now;
    }

    fn judge(&mut self) {
        let Window { busy, accepted, refused, waited } = self.window;
        let calls = accepted + refused;
        let share = f64::from(refused) / f64::from(calls.max(1));
        let whole = (busy >= SPAN && calls >= CALLS) || busy >= LONGEST;
        let glaring = refused >= LOT && share > TOO_MANY && busy >= SHORTEST;
        if !whole && !glaring {
            return;
        }
        let taken = f64::from(accepted) / busy.as_secs_f64();
        let rate = match self.rate {
            None if share > TOO_MANY => Some(taken * CAUTION),
            None => None,
            Some(_) if share > TOO_MANY => Some(taken * CAUTION),
            Some(rate) if refused > 0 => Some(rate * EASE),
            // Who did not need the rate has learned nothing about a higher one.
            Some(rate) if !waited => Some(rate),
            Some(rate) if rate > self.ceiling * CAUTION && rate < self.ceiling / CAUTION => Some(rate * SLOW),
            Some(rate) => Some(rate * FAST),
        };
        if refused > 0 {
            self.ceiling = taken;
        }
        self.rate = rate.map(|rate| rate.max(LEAST)).filter(|rate| *rate < BOUNDLESS);
        self.window = Window::default();
    }
}

/// A budget and those who wait for it.
#[derive(Debug)]
pub(super) struct Account {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    budget: Budget,
    /// By client, in the order in which they came.
    waiting: BTreeMap<u64, VecDeque<Arc<Notify>>>,
    /// The client that was served last.
    served: u64,
}

impl State {
    /// Who is served next: clients one after the other, and of one client who came first.
    fn first(&self) -> Option<&Arc<Notify>> {
        let after = self.waiting.range(self.served + 1..).next();
        after.or_else(|| self.waiting.first_key_value()).and_then(|(_, queue)| queue.front())
    }

    fn leave(&mut self, client: u64, place: &Arc<Notify>) {
        if let Some(queue) = self.waiting.get_mut(&client) {
            queue.retain(|other| !Arc::ptr_eq(other, place));
            if queue.is_empty() {
                self.waiting.remove(&client);
            }
        }
        if let Some(first) = self.first() {
            first.notify_one();
        }
    }
}

/// A place in the queue, which is left whatever happens to who waits.
struct Place<'a> {
    account: &'a Account,
    client: u64,
    turn: Arc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.account.state().leave(self.client, &self.turn);
    }
}

impl Account {
    pub(super) fn new() -> Self {
        let budget = Budget::new(Instant::now());
        Self { state: Mutex::new(State { budget, waiting: BTreeMap::new(), served: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers, whole at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a call of this client may go.
    ///
    /// # Errors
    /// For how long the account is closed, if that is too long to wait here.
    pub(super) async fn turn(&self, client: u64) -> Result<(), Duration> {
        let turn = {
            let mut state = self.state();
            let now = Instant::now();
            state.budget.open_soon(now)?;
            if state.waiting.is_empty() && state.budget.pause(now).is_zero() {
                state.budget.sent(now);
                return Ok(());
            }
            let turn = Arc::new(Notify::new());
            state.waiting.entry(client).or_default().push_back(Arc::clone(&turn));
            turn
        };
        let place = Place { account: self, client, turn };
        loop {
            let pause = {
                let mut state = self.state();
                let now = Instant::now();
                state.budget.open_soon(now)?;
                let pause = state.budget.pause(now);
                let is_first = state.first().is_some_and(|first| Arc::ptr_eq(first, &place.turn));
                if is_first && pause.is_zero() {
                    state.budget.sent(now);
                    state.served = client;
                    return Ok(());
                }
                is_first.then_some(pause)
            };
            match pause {
                // Whoever comes meanwhile may come before.
                Some(pause) => tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = place.turn.notified() => {}
                },
                None => place.turn.notified().await,
            }
        }
    }

    /// Notes an answer: a refusal because of too many calls, with the pause that was asked for, or any other.
    pub(super) fn answered(&self, refused: Option<Option<Duration>>) {
        let now = Instant::now();
        let mut state = self.state();
        match refused {
            Some(retry_after) => state.budget.refused(now, retry_after),
            None => state.budget.accepted(now),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A service that takes so many calls a second, and at most a second's worth at once.
    struct Service {
        rate: f64,
        saved: f64,
        last: Instant,
        retry_after: Option<Duration>,
        taken: usize,
        refused: usize,
    }

    impl Service {
        fn new(rate: f64, retry_after: Option<Duration>) -> Mutex<Self> {
            Mutex::new(Self { rate, saved: rate, last: Instant::now(), retry_after, taken: 0, refused: 0 })
        }

        fn call(&mut self) -> Option<Option<Duration>> {
            let now = Instant::now();
            self.saved = (self.saved + (now - self.last).as_secs_f64() * self.rate).min(self.rate);
            self.last = now;
            if self.saved < 1.0 {
                self.refused += 1;
                return Some(self.retry_after);
            }
            self.saved -= 1.0;
            self.taken += 1;
            None
        }
    }

    fn service(service: &Mutex<Service>) -> MutexGuard<'_, Service> {
        service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call until it is taken, as a step is tried again.
    async fn insist(account: &Account, client: u64, at: &Mutex<Service>) {
        let mut pause = Duration::from_millis(200);
        loop {
            account.turn(client).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let refused = service(at).call();
            account.answered(refused);
            let Some(asked) = refused else { return };
            tokio::time::sleep(asked.unwrap_or(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// `calls` calls of each client, `at_once` of each at once; when each client was done.
    async fn rush(
        account: &Account,
        at: &Mutex<Service>,
        clients: &[(u64, usize)],
        at_once: usize,
    ) -> Vec<f64> {
        let begun = Instant::now();
        let all = clients.iter().map(|(client, calls)| async move {
            let left = AtomicUsize::new(*calls);
            let worker = || async {
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    insist(account, *client, at).await;
                }
            };
            futures::future::join_all((0..at_once).map(|_| worker())).await;
            begun.elapsed().as_secs_f64()
        });
        futures::future::join_all(all).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_falls_and_the_time_is_near_the_best() {
        for retry_after in [None, Some(Duration::from_secs(1))] {
            for rate in [3.0, 10.0, 100.0] {
                let (account, at) = (Account::new(), Service::new(rate, retry_after));
                let calls = (rate * 60.0) as usize;
                let took = rush(&account, &at, &[(1, calls)], 32).await[0];
                let refused = service(&at).refused;
                println!("{rate}/s, {retry_after:?}: {took:.1} s of 59, {refused} refused");
                assert!(took < 59.0 * 1.35, "{rate}/s, {retry_after:?}: {took:.1} s");
                assert!(
                    (refused as f64) < calls as f64 * 0.1 + 100.0,
                    "{rate}/s, {retry_after:?}: {refused} refused"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_asked_for_is_kept_by_everybody() {
        let account = Account::new();
        account.turn(1).await.unwrap();
        account.answered(Some(Some(Duration::from_secs(7))));
        let begun = Instant::now();
        tokio::try_join!(account.turn(1), account.turn(2), account.turn(3)).unwrap();
        assert_eq!(begun.elapsed().as_secs(), 7);
        // A long one is told and not waited for.
        account.answered(Some(Some(Duration::from_secs(3600))));
        assert_eq!(account.turn(2).await, Err(Duration::from_secs(3600)));
        assert_eq!(begun.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_few_calls_does_not_wait_for_one_with_many() {
        let (account, at) = (Account::new(), Service::new(10.0, None));
        rush(&account, &at, &[(1, 100)], 32).await;
        let done = rush(&account, &at, &[(1, 400), (2, 20), (3, 20)], 32).await;
        // Three take turns at ten a second: twenty calls of each are done after some six seconds, not after forty.
        assert!(done[1] < 12.0 && done[2] < 12.0 && done[0] > 30.0, "{done:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_held_back_where_nothing_or_little_is_refused() {
        let account = Account::new();
        let begun = Instant::now();
        for n in 0..2000 {
            account.turn(1).await.unwrap();
            account.answered((n % 25 == 24).then_some(None));
        }
        assert!(begun.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_recovers_when_the_service_does() {
        let (account, at) = (Account::new(), Service::new(5.0, None));
        rush(&account, &at, &[(1, 150)], 32).await;
        service(&at).rate = 500.0;
        let took = rush(&account, &at, &[(1, 5000)], 32).await[0];
        assert!(took < 60.0, "{took:.1} s");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_holds_up_nobody() {
        let account = Account::new();
        account.turn(1).await.unwrap();
        account.answered(Some(Some(Duration::from_secs(5))));
        let impatient = tokio::time::timeout(Duration::from_secs(1), account.turn(1));
        let (gave_up, went) = tokio::join!(impatient, account.turn(1));
        assert!(gave_up.is_err() && went.is_ok());
        assert!(account.state().waiting.is_empty());
    }
}
