//! Waiting until a sandbox is where it was asked to be, at vendors that answer before it is.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ProviderError;

/// Pauses between looks at it.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Looks until there is nothing left to wait for, which `look` says by `None`; else it says what state it saw. A look that fails is repeated if that may
/// help: what was asked for has been granted already.
///
/// # Errors
/// [`ProviderError::Permanent`] if `what` is not `wanted` within `limit`, or what `look` says.
pub(super) async fn settled<F>(
    what: &str,
    wanted: &str,
    limit: Duration,
    mut look: impl FnMut() -> F + Send,
) -> Result<(), ProviderError>
where
    F: Future<Output = Result<Option<String>, ProviderError>> + Send,
{
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_LOOK;
    loop {
        let mut asked = Duration::ZERO;
        let last = match look().await {
            Ok(None) => return Ok(()),
            Ok(Some(state)) => state,
            Err(error) if error.is_retryable() => {
                if let ProviderError::Throttled { retry_after: Some(after) } = error {
                    asked = after;
                }
                "not to be seen".to_owned()
            }
            Err(error) => return Err(error),
        };
        if Instant::now() >= deadline {
            let message = format!("{what} is {last} and not {wanted} after {} s", limit.as_secs());
            return Err(ProviderError::Permanent { message, source: None });
        }
        sleep(pause.max(asked)).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
}
