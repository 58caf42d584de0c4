//! c10d's store: keys and values that all ranks see, served by one of them over TCP.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::time::Duration;

use super::connection::Deadline;
use super::fault::{Fault, GroupError};

/// Time between two looks for a key.
const LOOK: Duration = Duration::from_millis(10);

/// An answer of the C++ side: null, or a text from `malloc`.
pub(super) type Answer = *mut c_char;

/// A text of the engine: what went wrong, in one line.
pub(super) type EngineResult<T> = std::result::Result<T, String>;

/// The text of an answer, as an error.
pub(super) fn checked(answer: Answer) -> EngineResult<()> {
    if answer.is_null() {
        return Ok(());
    }
    // SAFETY: an answer that is not null is a C string from `malloc`, ours to free.
    let text = unsafe {
        let text = CStr::from_ptr(answer).to_string_lossy().into_owned();
        libc::free(answer.cast());
        text
    };
    let message = text.split("Exception raised from").next().unwrap_or_default();
    Err(message.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A C string; what is in it never holds a zero byte unless the environment is broken.
pub(super) fn c_string(text: &str) -> EngineResult<CString> {
    CString::new(text).map_err(|_| format!("{text:?} holds a zero byte"))
}

/// A client of a store, and on one rank its server too.
pub(super) struct Store {
    raw: *mut c_void,
}

// SAFETY: c10d's store guards itself; it belongs to no thread.
unsafe impl Send for Store {}

impl Store {
    /// Serves a store on a socket that listens already.
    pub(super) fn serve(listener: TcpListener, timeout: Duration) -> EngineResult<Self> {
        silence_engine();
        let place = listener.local_addr().map_err(|error| error.to_string())?;
        // The server's own client cannot connect to "any address".
        let host = match place.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".into(),
            IpAddr::V6(ip) if ip.is_unspecified() => "::1".into(),
            ip => ip.to_string(),
        };
        let (host, mut raw) = (c_string(&host)?, std::ptr::null_mut());
        // SAFETY: the string outlives the call, which takes the socket over and stores a new object.
        checked(unsafe {
            sppo_store_serve(
                &mut raw,
                host.as_ptr(),
                place.port(),
                listener.into_raw_fd(),
                milliseconds(timeout),
            )
        })?;
        Ok(Self { raw })
    }

    /// Connects to a store.
    pub(super) fn connect(host: &str, port: u16, timeout: Duration) -> EngineResult<Self> {
        silence_engine();
        let (host, mut raw) = (c_string(host)?, std::ptr::null_mut());
        // SAFETY: the string outlives the call, which stores a new object.
        checked(unsafe {
            sppo_store_connect(&mut raw, host.as_ptr(), port, milliseconds(timeout))
        })?;
        Ok(Self { raw })
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> EngineResult<()> {
        let key = c_string(key)?;
        // SAFETY: key and value outlive the call, which copies them.
        checked(unsafe { sppo_store_set(self.raw, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Adds to the number of a key, which begins as 0; returns the sum.
    pub(super) fn add(&self, key: &str, addend: i64) -> EngineResult<i64> {
        let (key, mut sum) = (c_string(key)?, 0);
        // SAFETY: the key outlives the call.
        checked(unsafe { sppo_store_add(self.raw, key.as_ptr(), addend, &mut sum) })?;
        Ok(sum)
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &str) -> EngineResult<Option<Vec<u8>>> {
        let (key, mut found) = (c_string(key)?, false);
        // SAFETY: the key outlives the call.
        checked(unsafe { sppo_store_has(self.raw, key.as_ptr(), &mut found) })?;
        if !found {
            return Ok(None);
        }
        let (mut bytes, mut length) = (std::ptr::null_mut::<u8>(), 0);
        // SAFETY: the key outlives the call, which stores `length` bytes from `malloc` or fails.
        checked(unsafe { sppo_store_get(self.raw, key.as_ptr(), &mut bytes, &mut length) })?;
        // SAFETY: as above; the bytes are ours to free.
        let value = unsafe {
            let value = std::slice::from_raw_parts(bytes, length).to_vec();
            libc::free(bytes.cast());
            value
        };
        Ok(Some(value))
    }

    /// The value of a key, once it is there.
    pub(super) fn wait(&self, key: &str, timeout: Duration) -> EngineResult<Vec<u8>> {
        let deadline = Deadline::after(timeout);
        loop {
            if let Some(value) = self.get(key)? {
                return Ok(value);
            }
            if deadline.is_over() {
                return Err(format!("the store has no `{key}`"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The object of the C++ side.
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.raw
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and freed once.
        unsafe { sppo_store_free(self.raw) };
    }
}

/// A store as torchrun's agent serves it to the processes that it starts, again and again.
pub struct AgentStore {
    _store: Store,
}

impl AgentStore {
    /// Serves a store on a socket that listens already, until the result is dropped.
    ///
    /// # Errors
    /// When c10d cannot serve there.
    pub fn serve(listener: TcpListener) -> Result<Self, GroupError> {
        let served = Store::serve(listener, Duration::from_secs(60));
        match served {
            Ok(store) => Ok(Self { _store: store }),
            Err(text) => Err(GroupError::new(Fault::Engine, None, text)),
        }
    }
}

/// Keeps c10d from writing its call stacks to standard error.
fn silence_engine() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: takes nothing; it may set an environment variable, which is why it runs before the first
    // thread of c10d.
    ONCE.call_once(|| unsafe { sppo_quiet_logs() });
}

/// A duration as c10d counts it.
pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

unsafe extern "C" {
    fn sppo_quiet_logs();
    fn sppo_store_serve(
        result: *mut *mut c_void,
        host: *const c_char,
        port: u16,
        listener: c_int,
        timeout_ms: i64,
    ) -> Answer;
    fn sppo_store_connect(
        result: *mut *mut c_void,
        host: *const c_char,
        port: u16,
        timeout_ms: i64,
    ) -> Answer;
    fn sppo_store_set(
        store: *mut c_void,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
    ) -> Answer;
    fn sppo_store_add(store: *mut c_void, key: *const c_char, addend: i64, sum: *mut i64)
    -> Answer;
    fn sppo_store_has(store: *mut c_void, key: *const c_char, found: *mut bool) -> Answer;
    fn sppo_store_get(
        store: *mut c_void,
        key: *const c_char,
        bytes: *mut *mut u8,
        length: *mut usize,
    ) -> Answer;
    fn sppo_store_free(store: *mut c_void);
}
