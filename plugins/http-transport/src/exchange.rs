//! Requests, their replies, and the trait by which a plugin says what these mean.

use hyper::body::Bytes;
use sppo_plugin::PluginError;

use crate::refusal::Refusal;

/// A request to whichever endpoint is free.
#[derive(Debug)]
pub struct Request<J> {
    /// The body, JSON.
    pub body: Bytes,
    /// The purpose of the request, which comes back with the reply.
    pub job: J,
}

/// A reply, together with the job of its request.
#[derive(Debug)]
pub struct Reply<J, C> {
    /// The purpose of the request.
    pub job: J,
    /// The content of the reply, as [`Exchange::read`] understood it.
    pub content: C,
}

/// The reason why the form of a reply is wrong. The request is tried again, as after a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// The meaning of requests and replies, which the transport carries without looking into them.
///
/// The methods are called by the one thread that all workers share, so they must not take long.
pub trait Exchange: Send + Sync + 'static {
    /// The purpose of a request.
    type Job: Send + Sync + 'static;
    /// The content of a reply.
    type Content: Send + 'static;

    /// Reads the body of a reply. `clean` makes of any text one short line without the key of the
    /// service; texts of a reply that a person may see must pass through it.
    ///
    /// # Errors
    /// The body is not what the service should have sent.
    fn read(
        &self,
        job: &Self::Job,
        body: &[u8],
        clean: &dyn Fn(&str) -> String,
    ) -> Result<Self::Content, Malformed>;

    /// Makes everything that was read so far durable. Called before a reply is handed over, once for
    /// all replies that arrived together.
    ///
    /// # Errors
    /// It cannot be stored; the round stops.
    fn commit(&self) -> Result<(), PluginError> {
        Ok(())
    }

    /// Whether the request is sent again because its reply, although well-formed, is of no use.
    /// `repeats` counts the earlier repetitions of this request.
    fn asks_again(&self, _content: &Self::Content, _repeats: u32) -> bool {
        false
    }

    /// Takes note of a reply after which its request is not sent again. Replies that arrive after their
    /// round was abandoned are noted too; nobody else gets them.
    fn settled(&self, _content: &Self::Content) {}

    /// Content that stands for the reply to a request that the service refuses, if others need not suffer from
    /// it; otherwise the round stops. `is_alone` is whether no other request is under way, so that nothing is
    /// known of how the service would treat one.
    fn set_aside(
        &self,
        _job: &Self::Job,
        _refusal: &Refusal,
        _is_alone: bool,
    ) -> Option<Self::Content> {
        None
    }

    /// The hint for a request that the service refused with `status`, if the plugin knows a better one
    /// than the transport.
    fn refusal_hint(&self, _status: u16, _message: &str) -> Option<String> {
        None
    }

    /// The hint for a reply that makes no sense, if the plugin knows a better one than to go on.
    fn unreadable_hint(&self, _message: &str) -> Option<String> {
        None
    }

    /// The hint for a round that was given up: what to do so that it goes on.
    fn resume_hint(&self) -> String;
}
