//! What the errors of object stores mean to the caller, and what helps.
//!
//! `object_store` tells some kinds of errors apart, too coarsely for a put-if-absent: it calls every
//! conflict `AlreadyExists`. So errors are read by the status and the code of the answer. The tests pin
//! the texts that they stand in.

use std::error::Error as _;

use object_store::client::{HttpError, HttpErrorKind};

use crate::{Error, ErrorKind};

/// What a store answered.
#[derive(Debug)]
struct Answer {
    status: Option<u16>,
    /// The code of S3, GCS or Azure, such as `NoSuchKey`; empty if there is none.
    code: String,
    /// The store's own words; empty if there are none.
    message: String,
}

/// True if the answer to a put-if-absent says that the object exists.
///
/// S3 and GCS say 412. Azure says 409 with a code. Another 409 says that something else is going on
/// with this key, such as another put that may yet fail: then nobody knows.
pub(super) fn says_exists(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    let answer = answer(error);
    match answer.status {
        Some(412) => true,
        Some(409) => answer.code == "BlobAlreadyExists",
        Some(_) => false,
        None => matches!(error, E::AlreadyExists { .. } | E::Precondition { .. }),
    }
}

/// An error of a put. A put finds no bucket, or nothing is missing.
pub(super) fn of_put(key: &str, error: &object_store::Error) -> Error {
    let answer = answer(error);
    if answer.status == Some(404) {
        return describe(key, "write", error, &answer, ErrorKind::Invalid, Some(NO_BUCKET));
    }
    if answer.status == Some(501) || matches!(error, object_store::Error::NotImplemented { .. }) {
        return describe(key, "write", error, &answer, ErrorKind::Invalid, Some(NO_CONDITION));
    }
    of(key, "write", error)
}

/// An error of doing `verb` to `key`.
pub(super) fn of(key: &str, verb: &str, error: &object_store::Error) -> Error {
    let answer = answer(error);
    let (kind, remedy) = match by_code(&answer.code) {
        Some(meaning) => meaning,
        None => match answer.status {
            Some(status) => by_status(status),
            None => by_type(error),
        },
    };
    describe(key, verb, error, &answer, kind, remedy)
}

const NO_BUCKET: &str = "create the bucket or container, or correct the URL";
const NO_CONDITION: &str = "use a store that honours If-None-Match on a put, and leave \
                            aws_conditional_put alone";
const RIGHTS: &str = "check the credentials, and their rights to read, write, list and delete in the \
                      bucket";
const REGION: &str = "set the region and the endpoint of the bucket (AWS_REGION, AWS_ENDPOINT_URL)";
const NETWORK: &str = "check the network and the endpoint";
const SLOWER: &str = "the store asks for fewer requests: wait, or use fewer ranks at once";
const ROOM: &str = "the store is full: free some space, or have the quota raised, and save again";

type Meaning = (ErrorKind, Option<&'static str>);

/// What only the code tells.
fn by_code(code: &str) -> Option<Meaning> {
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName" => {
            (ErrorKind::Invalid, Some(NO_BUCKET))
        }
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientCapacity" => {
            (ErrorKind::Overloaded, Some(ROOM))
        }
        "SlowDown" | "ServerBusy" | "TooManyRequests" | "RequestLimitExceeded" => {
            (ErrorKind::Overloaded, Some(SLOWER))
        }
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            (ErrorKind::Denied, Some("get new credentials: these have expired"))
        }
        "RequestTimeTooSkewed" => (ErrorKind::Denied, Some("set the clock of this machine")),
        "AuthorizationHeaderMalformed" | "PermanentRedirect" => (ErrorKind::Invalid, Some(REGION)),
        // The request was cut or damaged on its way.
        "RequestTimeout" | "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" => {
            (ErrorKind::Unavailable, Some(NETWORK))
        }
        _ => return None,
    })
}

fn by_status(status: u16) -> Meaning {
    match status {
        401 | 403 => (ErrorKind::Denied, Some(RIGHTS)),
        404 => (ErrorKind::NotFound, None),
        408 | 409 | 412 => (ErrorKind::Unavailable, None),
        416 => (ErrorKind::Corrupt, None),
        429 => (ErrorKind::Overloaded, Some(SLOWER)),
        507 => (ErrorKind::Overloaded, Some(ROOM)),
        300..=399 => (ErrorKind::Invalid, Some(REGION)),
        400..=499 | 501 => (ErrorKind::Invalid, Some("check the URL and the options of the store")),
        _ => (ErrorKind::Unavailable, None),
    }
}

/// What is told without an answer.
fn by_type(error: &object_store::Error) -> Meaning {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => (ErrorKind::NotFound, None),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => (ErrorKind::Denied, Some(RIGHTS)),
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => (ErrorKind::Invalid, None),
        E::Generic { .. } if error.to_string().contains("Received redirect without LOCATION") => {
            (ErrorKind::Invalid, Some(REGION))
        }
        _ => (ErrorKind::Unavailable, Some(remedy_of_silence(error))),
    }
}

fn remedy_of_silence(error: &object_store::Error) -> &'static str {
    let text = error.to_string();
    let asked_for_credentials = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];
    if asked_for_credentials.iter().any(|host| text.contains(host)) {
        return "there are no credentials, and nothing here hands them out: set AWS_ACCESS_KEY_ID and \
                AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_KEY";
    }
    NETWORK
}

fn describe(
    key: &str,
    verb: &str,
    error: &object_store::Error,
    answer: &Answer,
    kind: ErrorKind,
    remedy: Option<&str>,
) -> Error {
    let reason = match answer {
        Answer { status: None, .. } => silence(error),
        Answer { status: Some(status), code, message } => {
            let said = [code.as_str(), message.as_str()].map(str::trim);
            let said: Vec<&str> = said.into_iter().filter(|said| !said.is_empty()).collect();
            match said.is_empty() {
                true => format!("the store answered {status}"),
                false => format!("the store answered {status}: {}", said.join(": ")),
            }
        }
    };
    let error = Error::new(kind, format!("cannot {verb}: {reason}")).with_object(key);
    match remedy {
        Some(remedy) => error.with_remedy(remedy),
        None => error,
    }
}

/// Why there is no answer.
fn silence(error: &object_store::Error) -> String {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            let what = match http.kind() {
                HttpErrorKind::Connect => "the store cannot be reached",
                HttpErrorKind::Timeout => "the store did not answer in time",
                HttpErrorKind::Interrupted | HttpErrorKind::Request => "the connection was lost",
                _ => "the request failed",
            };
            return format!("{what}: {}", innermost(http));
        }
        source = cause.source();
    }
    error.to_string()
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Reads the answer out of the error's text: its type is private.
fn answer(error: &object_store::Error) -> Answer {
    let text = error.to_string();
    let status = text
        .split_once("status code: ")
        .and_then(|(_, rest)| rest.get(..3))
        .and_then(|digits| digits.parse().ok());
    // A redirect has no body, and an error that is not of HTTP may quote anything.
    let element = |name: &str| match status {
        Some(_) => text
            .split_once(&format!("<{name}>"))
            .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")))
            .map(|(value, _)| value.to_owned())
            .unwrap_or_default(),
        None => String::new(),
    };
    Answer { status, code: element("Code"), message: element("Message") }
}
