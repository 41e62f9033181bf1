//! Whose turn it is: so many statements at once, so many of one user, so many that wait; the next is refused at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::metrics::Metrics;
use crate::options::Limits;
use crate::sessions::locked;

/// Lets statements in.
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    slots_max: usize,
    per_user_max: usize,
    queue_max: usize,
    queue_time_max: Duration,
    queued: AtomicUsize,
    users: Mutex<HashMap<String, usize>>,
    metrics: Metrics,
}

/// A statement's place; it is given back when this is dropped.
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    user: Option<String>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            self.admission.leave(user);
        }
    }
}

/// Counts one that waits.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(limits: &Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(limits.statements_max)),
            slots_max: limits.statements_max,
            per_user_max: limits.statements_per_user_max,
            queue_max: limits.queue_max,
            queue_time_max: limits.queue_time_max,
            queued: AtomicUsize::new(0),
            users: Mutex::default(),
            metrics,
        })
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// A full queue, a user with too many statements, a wait that takes too long. The client may try again.
    pub(crate) async fn enter(self: &Arc<Self>, user: Option<&str>) -> Result<Admitted, Status> {
        if let Some(user) = user {
            self.count(user)?;
        }
        // From here on, whoever is dropped gives the user's count back.
        let counted = CountedUser { admission: self, user };
        let slot = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => self.wait().await?,
        };
        std::mem::forget(counted);
        Ok(Admitted { admission: Arc::clone(self), user: user.map(str::to_owned), _slot: slot })
    }

    async fn wait(&self) -> Result<OwnedSemaphorePermit, Status> {
        if self.queued.fetch_add(1, Ordering::Relaxed) >= self.queue_max {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Status::unavailable(format!(
                "the server runs {} statements and {} wait, which is all it takes; try again in a moment",
                self.slots_max, self.queue_max
            )));
        }
        let _queued = Queued(&self.queued);
        let _counted = self.metrics.queued();
        match tokio::time::timeout(self.queue_time_max, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) => Err(Status::unavailable("the server is stopping; connect to another, or later")),
            Err(_) => Err(Status::unavailable(format!(
                "the statement waited {} s for its turn and gave up; try again in a moment",
                self.queue_time_max.as_secs()
            ))),
        }
    }

    fn count(&self, user: &str) -> Result<(), Status> {
        let mut users = locked(&self.users);
        let count = users.entry(user.to_owned()).or_default();
        if *count >= self.per_user_max {
            return Err(Status::unavailable(format!(
                "{user} runs {count} statements, which is all that one user may; wait for one of them to end"
            )));
        }
        *count += 1;
        Ok(())
    }

    fn leave(&self, user: &str) {
        let mut users = locked(&self.users);
        if let Some(count) = users.get_mut(user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                users.remove(user);
            }
        }
    }
}

/// Takes a user's count back if the statement does not get in.
struct CountedUser<'a> {
    admission: &'a Admission,
    user: Option<&'a str>,
}

impl Drop for CountedUser<'_> {
    fn drop(&mut self) {
        if let Some(user) = self.user {
            self.admission.leave(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(limits: Limits) -> Arc<Admission> {
        Admission::new(&limits, Metrics::new())
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_place_lets_the_next_in() {
        let admission = admission(Limits { statements_max: 1, queue_max: 1, ..Limits::default() });
        let first = admission.enter(None).await.unwrap();
        let waiting = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.enter(Some("ada")).await.map(drop) }
        });
        while admission.queued.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let refused = admission.enter(None).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        assert!(refused.message().contains("try again"), "{}", refused.message());
        drop(first);
        waiting.await.unwrap().unwrap();
        assert_eq!((admission.slots.available_permits(), admission.queued.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test]
    async fn one_user_cannot_take_all_places() {
        let admission = admission(Limits { statements_per_user_max: 1, ..Limits::default() });
        let first = admission.enter(Some("ada")).await.unwrap();
        assert!(admission.enter(Some("ada")).await.is_err());
        assert!(admission.enter(Some("bob")).await.is_ok());
        drop(first);
        assert!(admission.enter(Some("ada")).await.is_ok());
        assert!(locked(&admission.users).is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_too_long_gives_up_and_is_not_counted() {
        let limits = Limits { statements_max: 1, queue_time_max: Duration::from_millis(1), ..Limits::default() };
        let admission = admission(limits);
        let _first = admission.enter(None).await.unwrap();
        assert!(admission.enter(Some("ada")).await.is_err());
        assert_eq!(admission.queued.load(Ordering::Relaxed), 0);
        assert!(locked(&admission.users).is_empty());
    }
}
